# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is decided, and nothing else: no clock, file, socket, asyncio or logging in here."""
