# SPDX-License-Identifier: LGPL-2.1-or-later
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storaged_conn.system.mountinfo import Mount, MountTable, compare, parse
from tests.mounts import needs_root

DATA = Path(__file__).parents[1] / "data"

ROOT = "1 0 8:1 / / rw - ext4 /dev/sda1 rw"


def table_of(path: Path, *lines: str) -> MountTable:
    path.write_text("".join(f"{line}\n" for line in lines))
    table = MountTable(path)
    table.refresh()
    return table


def one(line: str) -> Mount:
    (mount,) = parse(line.encode()).values()
    return mount


@pytest.fixture
def real() -> MountTable:
    table = MountTable(DATA / "mountinfo-6.18")
    table.refresh()
    return table


@pytest.fixture
def link() -> Iterator[Path]:
    path = Path("/dev/storaged-conn-test")
    yield path
    path.unlink(missing_ok=True)


def test_a_line_is_read_as_proc_5_says() -> None:
    line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"
    assert one(line) == Mount(
        36,
        35,
        "98:0",
        "/mnt1",
        "/mnt2",
        ("rw", "noatime"),
        "ext3",
        "/dev/root",
        ("rw", "errors=continue"),
    )


def test_a_real_table_is_read_whole(real: MountTable) -> None:
    lines = (DATA / "mountinfo-6.18").read_text().splitlines()
    assert real.mounts is not None
    assert len(real.mounts) == len(lines)


def test_escapes_and_empty_sources_are_read(real: MountTable) -> None:
    spaced = real.at("/srv/with space")
    assert spaced is not None
    assert spaced.source == ""
    strange = real.at("/srv/new\nline")
    assert strange is not None
    assert strange.source == "a\\b #c"


def test_the_topmost_of_stacked_mounts_is_seen(real: MountTable) -> None:
    assert [m.source for m in (real.mounts or {}).values() if m.target == "/srv/stack"] == [
        "one",
        "two",
    ]
    seen = real.at("/srv/stack")
    assert seen is not None
    assert seen.source == "two"


def test_what_a_bind_mount_shows_is_known(real: MountTable) -> None:
    bound, gone = real.at("/srv/bound"), real.at("/srv/gone")
    assert bound is not None
    assert gone is not None
    assert (bound.root, bound.read_only, bound.whole, bound.deleted) == ("/sub", True, False, False)
    assert (gone.root, gone.deleted) == ("/del//deleted", True)


def test_a_btrfs_subvolume_is_whole() -> None:
    line = "2 1 0:40 /@home /home rw - btrfs /dev/sda2 rw,subvolid=256,subvol=/@home"
    assert one(line).whole
    assert not one(line.replace("/@home /home", "/@home/user /home")).whole


@pytest.mark.parametrize(
    ("line", "local"),
    [
        (ROOT, True),
        ("2 1 0:40 / /x rw - tmpfs tmpfs rw", True),
        ("2 1 0:40 / /x rw - btrfs /dev/sda2 rw", True),
        ("2 1 0:40 / /x rw - nfs4 host:/x rw", False),
        ("2 1 0:40 / /x rw - fuse.sshfs host:/x rw", False),
        ("2 1 8:17 / /x rw - fuseblk /dev/sdb1 rw", False),
        ("2 1 0:40 / /x rw - something-new x rw", False),
    ],
)
def test_only_what_is_known_to_be_local_is_local(line: str, local: object) -> None:
    assert one(line).local is local


def test_a_look_up_walks_down_as_the_kernel_does(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "table",
        ROOT,
        "2 1 0:2 / /a rw - tmpfs a rw",
        "3 2 0:3 / /a/b rw - tmpfs hidden rw",
        "4 2 0:4 / /a rw - tmpfs over rw",  # on top of /a, so that /a/b cannot be reached
        "5 1 0:5 / /ab rw - tmpfs ab rw",
    )
    into = {path: table.covering(path) for path in ("/", "/x", "/a", "/a/b", "/ab/c")}
    ids = {path: mount and mount.id for path, mount in into.items()}
    assert ids == {"/": 1, "/x": 1, "/a": 4, "/a/b": 4, "/ab/c": 5}
    assert table.at("/a/b") is None
    assert table.at("/ab/c") is None


def test_a_root_that_is_no_mount_is_no_obstacle(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", "7 3 0:2 / /a rw - tmpfs a rw")
    seen = table.at("/a")
    assert seen is not None
    assert seen.id == 7
    assert table.covering("/b") is None


def test_mounts_that_claim_to_be_each_others_parents_do_not_hang_a_look_up(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "table",
        "1 1 0:1 / / rw - tmpfs a rw",
        "2 3 0:2 / / rw - tmpfs b rw",
        "3 2 0:3 / / rw - tmpfs c rw",
    )
    assert table.covering("/x") is not None


def test_an_unreadable_table_is_unknown_and_not_empty(tmp_path: Path) -> None:
    table = MountTable(tmp_path / "nothing")
    table.refresh()
    assert table.mounts is None
    assert table_of(tmp_path / "empty").mounts == {}


def test_a_table_that_becomes_unreadable_is_no_news(tmp_path: Path) -> None:
    table = table_of(tmp_path / "table", ROOT)
    heard: list[str] = []
    table.listeners.append(lambda added, removed: heard.append("news"))
    (tmp_path / "table").unlink()
    table.refresh()
    assert table.mounts is None
    assert heard == []


def test_listeners_hear_what_came_went_and_changed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    moved = "2 1 0:2 / /a rw - tmpfs a rw"
    table = table_of(path, ROOT, moved, "3 1 0:3 / /b rw - tmpfs b rw")
    heard: list[tuple[list[str], list[str]]] = []

    def listen(added: Sequence[Mount], removed: Sequence[Mount]) -> None:
        heard.append(([m.target for m in added], [m.target for m in removed]))

    table.listeners.append(listen)
    table.refresh()
    path.write_text(f"{ROOT}\n{moved.replace('rw -', 'ro -')}\n4 1 0:4 / /c rw - tmpfs c rw\n")
    table.refresh()
    assert heard == [(["/a", "/c"], ["/b"])]


def test_a_number_that_is_used_again_is_another_mount() -> None:
    old, new = parse(b"2 1 0:2 / /a rw - tmpfs a rw"), parse(b"2 1 0:3 / /a rw - tmpfs b rw")
    assert compare(old, new) == ([new[2]], [old[2]])


@needs_root
@pytest.mark.root
def test_sources_are_found_by_all_their_names(link: Path, tmp_path: Path) -> None:
    link.symlink_to("vda7")
    table = table_of(tmp_path / "table", ROOT, f"2 1 8:7 / /a rw - ext4 {link} rw")
    assert [m.id for m in table.named("/dev/vda7")] == [m.id for m in table.named(str(link))] == [2]
    link.unlink()  # the device went, the mount did not
    (tmp_path / "table").write_text(f"2 1 8:7 / /a rw - ext4 {link} rw\n")
    table.refresh()
    assert [m.id for m in table.named("/dev/vda7")] == [2]


@given(st.binary())
def test_no_bytes_at_all_upset_the_parser(raw: bytes) -> None:
    for mount in parse(raw).values():
        assert mount.fstype is not None


FIELD = st.text("ab /\\\n\t#é\x7f", min_size=1)


@given(st.lists(st.tuples(FIELD, FIELD)))
def test_what_the_kernel_escapes_comes_back(fields: list[tuple[str, str]]) -> None:
    def escape(text: str) -> str:
        return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)

    lines = [
        f"{number} 0 0:1 / /{escape(target)} rw - tmpfs {escape(source)} rw"
        for number, (target, source) in enumerate(fields)
    ]
    mounts = parse("\n".join(lines).encode())
    assert [(m.target, m.source) for m in mounts.values()] == [(f"/{t}", s) for t, s in fields]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.sampled_from("abc")), max_size=8)
)
def test_every_look_up_in_any_table_ends(lines: list[tuple[int, int, str]]) -> None:
    table = MountTable(Path("/nonexistent"))
    raw = "\n".join(f"{i} {p} 0:{i} / /{t} rw - tmpfs x rw" for i, p, t in lines)
    table.mounts = parse(raw.encode())
    table._index()
    for path in ("/", "/a", "/a/b", "/c"):
        found = table.covering(path)
        assert found is None or path.startswith(found.target)
