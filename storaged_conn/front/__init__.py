# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus side: names, types and authorization; no logic."""
