# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only place with system calls, /sys, /proc and child processes."""
