# SPDX-License-Identifier: LGPL-2.1-or-later
"""Things that happen: each file turns one stream of the operating system into looks."""
