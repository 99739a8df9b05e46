# SPDX-License-Identifier: LGPL-2.1-or-later
"""storaged-connctl: a client of the bus like any other."""
