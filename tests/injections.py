# SPDX-License-Identifier: LGPL-2.1-or-later
"""What somebody may write to make one thing two, or another: texts for every place that takes one.

Source: the advisories that are named; CWE-77, 88, 93, 22, 59, 117, 176.
"""

from typing import Final
from urllib.parse import quote_from_bytes

INJECTIONS: Final[dict[str, str]] = {
    "comma": "x,suid,dev",  # CVE-2026-6437: one mount option becomes three
    "equals": "x=y=z",
    "newline": "x\nsuid",  # CVE-2026-104715: a line of a file of credentials becomes two
    "carriage return": "x\rsuid",
    "nul": "x\0suid",
    "escape": "x\x1b[2J",
    "delete": "x\x7f",
    "next line": "x\x85y",
    "tab": "x\ty",
    "leading dash": "-oProxyCommand=sh",  # CVE-2026-111581
    "long option": "--bind",
    "dots": "../../etc",
    "dots within": "/mnt/root/../../etc",
    "dots encoded": "%2e%2e/%2e%2e/etc",
    "dot": "/mnt/./root",
    "slashes": "//etc//passwd",
    "credentials": "credentials=/etc/shadow",  # CVE-2026-104715: a file that root reads
    "cred": "cred=/etc/shadow",
    "password": "password=x",
    "pass2": "pass2=x",
    "userinfo": "user:secret@host",
    "userinfo encoded": "user%3Asecret%40host",
    "helper": "uhelper=sh",
    "x-option": "x-systemd.automount",
    "substitution": "$(id)",  # CVE-2020-14342
    "backticks": "`id`",
    "semicolon": "x;id",
    "pipe": "x|id",
    "quotes": "'\"x",
    "backslash": "x\\040suid",
    "octal comma": "x\\054suid",
    "percent": "%",
    "percent cut": "%2",
    "percent nul": "%00",
    "percent comma": "%2Csuid",
    "percent newline": "%0Asuid",
    "percent twice": "%252Csuid",
    "percent format": "%s%n{0.__class__}",  # CVE-2018-17336
    "systemd specifier": "%h%%",
    "query": "x?y=z",
    "fragment": "x#y",
    "zone": "[fe80::1%eth0]",
    "zone encoded": "[fe80::1%25eth0]",
    "zone option": "[fe80::1%25-o]",
    "mapped": "[::ffff:127.0.0.1]",
    "bracket": "[::1",
    "overlong": "x" * 5000,
    "overlong name": "x" * 256,
    "overlong utf-8": "%C0%AF%C0%AE",  # / and . as no decoder may take them
    "lone surrogate": "x\ud800",
    "escaped byte": "x\udcff",
    "bidi": "x\u202etxt.exe",  # CVE-2021-42574
    "isolate": "\u2066x\u2069",
    "zero width": "x\u200by",
    "line separator": "x\u2028y",
    "not a character": "x\uffff",
    "full width": "\uff0e\uff0e\uff0fetc",  # NFKC makes ../etc of it
    "dotless": "\u0131",
    "digits": "\u0661\u0662",  # int() takes them
    "underscore": "1_000",
    "empty": "",
    "space": " ",
}


def encoded(text: str) -> str:
    """Percent-encode all of a text, so that what decodes it is what must refuse it."""
    return quote_from_bytes(text.encode(errors="surrogatepass"), safe="")
