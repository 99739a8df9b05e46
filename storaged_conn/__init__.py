# SPDX-License-Identifier: LGPL-2.1-or-later
"""storaged-conn keeps a Linux host's storage connections up.

The core decides, drivers and sources touch the world, the front translates. Imports point one way,
and `tests/test_imports.py` holds them to it:

    errors, names, config < core < system < bus < {store, drivers, sources} < runner
                  < {unmanaged, leaving, vault} < manager < front < daemon < __main__
                  (ctl: a client, over names and bus only)
"""
