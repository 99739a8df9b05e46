# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per kind of storage, which holds only what differs."""
