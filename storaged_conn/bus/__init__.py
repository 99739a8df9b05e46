# SPDX-License-Identifier: LGPL-2.1-or-later
"""dbus-next, kept behind one door: what it does wrong is mended here and nowhere else."""
