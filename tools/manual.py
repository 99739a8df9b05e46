# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes org.storage.Connection(5) from the documentation in dbus/*.xml; `make man`.

Before each interface, method and property stands a comment: its name with a colon, `@name:` for
each argument, and paragraphs. Source: man(7).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

TOP: Final = Path(__file__).parents[1]
PAGE: Final = TOP / "man/org.storage.Connection.5"
FILES: Final = ("org.storage.Connection.Manager1.xml", "org.storage.Connection1.xml")

HEAD: Final = """\
.\\" SPDX-License-Identifier: LGPL-2.1-or-later
.\\" Made by tools/manual.py from dbus/*.xml; see there.
.TH ORG.STORAGE.CONNECTION 5 "" storaged\\-conn
.SH NAME
org.storage.Connection \\- the D\\-Bus interface of storaged\\-conn
.SH DESCRIPTION
The service
.BR storaged\\-connd (8)
has this name on the system bus. The same text is in /usr/share/dbus\\-1/interfaces, as
introspection data for programs.
.PP
After the name of a method stand the types of what goes in and of what comes out; after that of a
property its type, and what is to be known of changes if PropertiesChanged lacks the value.
"""

TAIL: Final = """\
.SH SEE ALSO
.BR storaged\\-connctl (1),
.BR busctl (1),
.BR storaged\\-conn\\-nfs (5),
.BR storaged\\-connd (8)
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """Give the page."""
    roots = (_parse(TOP / "dbus" / name) for name in FILES)
    return "".join((HEAD, *(line for root in roots for line in _root(root)), TAIL))


def _parse(file: Path) -> ET.Element:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))  # noqa: S314  # our own file
    return ET.parse(file, parser).getroot()  # noqa: S314


def _root(root: ET.Element) -> Iterator[str]:
    for words, interface in _documented(root):
        name = interface.attrib["name"]
        yield f".SH {_escape(name)}\n"
        yield from _text(re.sub(r"@short_description:.*", "", words))
        for more, member in _documented(interface):
            yield f".SS {_escape(_title(member))}\n"
            yield from _text(more)


def _documented(parent: ET.Element) -> Iterator[tuple[str, ET.Element]]:
    """Give each child with the comment before it, without the name at its beginning."""
    words = ""
    for child in parent:
        if name := child.attrib.get("name"):  # not a comment
            assert words.startswith(f"{name}:"), f"{name} has no documentation before it"
            yield words.removeprefix(f"{name}:"), child
        words = (child.text or "").strip()


def _title(member: ET.Element) -> str:
    name = member.attrib["name"]
    if member.tag == "property":
        notes = [one.attrib["value"] for one in member.iter("annotation")]
        how = {"const": ", constant", "false": ", not published"}.get("".join(notes), "")
        return f"{name}  {member.attrib['type']}{how}"
    types: dict[str, list[str]] = {"in": [], "out": []}
    for arg in member.iter("arg"):
        types[arg.attrib["direction"]].append(arg.attrib["type"])
    takes, gives = (" ".join(types[one]) for one in ("in", "out"))
    return f"{name}({takes})" + (f" → {gives}" if gives else "")


def _text(words: str) -> Iterator[str]:
    """Give paragraphs; `@name: text` begins one that is tagged, and ends where a line is empty."""
    separator = ""
    for paragraph in re.split(r"\n\s*\n", words.strip()):
        head, *tagged = re.split(r"(?:^|\n)\s*@", paragraph)
        if head.strip():
            yield f"{separator}{_fill(head)}"
        for one in tagged:
            name, _, text = one.partition(":")
            yield f".TP\n.I {_escape(name)}\n{_fill(text)}"
        separator = ".PP\n"


def _fill(text: str) -> str:
    """Give one line for each sentence or so: a line break is what roff spaces sentences by."""
    joined = " ".join(text.split())
    return "".join(f"{_escape(line)}\n" for line in re.split(r"(?<=\.) (?=[A-Z])", joined))


def _escape(text: str) -> str:
    """Keep roff from reading anything into a text. Source: groff_char(7), groff(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("→", "\\(->")
    text = text.replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    main()
