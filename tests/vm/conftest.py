# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests in guest/ run in the guest alone: `make check-vm`, see README.md."""

collect_ignore = ["guest"]
