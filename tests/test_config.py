# SPDX-License-Identifier: LGPL-2.1-or-later
import itertools
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storaged_conn.config import DIRECTORIES, NAME, SETTINGS, Config, Keepalive, known, load
from tests.caller import serving

EXAMPLE = Path(__file__).parents[1] / "systemd/storaged-conn.conf"

TIMES = {"90s": 90, "90": 90, "15min": 900, "0": 0, "1.5h": 5400, "250ms": 0.25, "2 sec": 2}

SAMPLES = [f"[{section}]\n{key}=" for section, key in SETTINGS]
WORDS = [*SAMPLES, "[Audit]", "[Audit", "[]", *"=#; \n\r1h"]
texts = st.text() | st.lists(st.sampled_from(WORDS) | st.text(max_size=3)).map("".join)


def write(root: Path, text: str | bytes, name: str = "", directory: str = "etc") -> Path:
    """Write the main file, or a drop-in of this name."""
    folder = root / directory / "storaged-conn"
    file = folder / f"{NAME}.d" / name if name else folder / NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def interval(text: str) -> str:
    return f"[Audit]\nIntervalSec={text}\n"


def test_without_files_there_are_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path) == (Config(900.0, Keepalive(1, 1, 3)), [])


def test_all_that_is_set_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "[Audit]\nIntervalSec=1h\n[Keepalive]\nIdleSec = 5\nIntervalSec=2\nCount= 4\n")
    assert load(tmp_path) == (Config(3600.0, Keepalive(5, 2, 4)), [])


@pytest.mark.parametrize("text", ["1", "yes", "true", "on"])
def test_what_is_yes_and_what_is_no(tmp_path: Path, text: str) -> None:
    write(tmp_path, f"[Secrets]\nEncrypt={text}\n")
    assert load(tmp_path) == (Config(encrypt=True), [])
    write(tmp_path, "[Secrets]\nEncrypt=no\n", "last.conf")
    assert load(tmp_path) == (Config(), [])


def test_what_is_neither_yes_nor_no_is_reported(tmp_path: Path) -> None:
    file = write(tmp_path, "[Secrets]\nEncrypt=maybe\n")
    complaint = f"{file}:2: Encrypt must be yes or no, not 'maybe'; this line is ignored"
    assert load(tmp_path) == (Config(), [complaint])


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_times_have_units(tmp_path: Path, text: str, seconds: float) -> None:
    write(tmp_path, interval(text))
    assert load(tmp_path) == (Config(audit=seconds), [])


@pytest.mark.parametrize(
    "text", ["", "-1", "1e3", "soon", "1 2", "1d", "1h30min", "٣", "nan", "inf"]
)
def test_what_is_no_time_is_reported_and_the_default_stays(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, f"# a comment\n\n{interval(text)}[Keepalive]\nCount=5\n")
    config, (complaint,) = load(tmp_path)
    assert config == Config(keepalive=Keepalive(count=5))
    assert complaint.startswith(f"{file}:4: IntervalSec must be a time")
    assert repr(text) in complaint


@pytest.mark.parametrize(
    ("key", "highest"), [("IdleSec", 32767), ("IntervalSec", 32767), ("Count", 127)]
)
@pytest.mark.parametrize("other", ["0", "{more}", "1.5", "-1", "x", "", "9" * 400])
def test_keepalive_has_the_bounds_of_the_kernel(
    tmp_path: Path, key: str, highest: int, other: str
) -> None:
    write(tmp_path, f"[Keepalive]\n{key}={highest}\n")
    config, complaints = load(tmp_path)
    assert highest in (config.keepalive.idle, config.keepalive.interval, config.keepalive.count)
    assert complaints == []
    file = write(tmp_path, f"[Keepalive]\n{key}={other.format(more=highest + 1)}\n")
    config, (complaint,) = load(tmp_path)
    assert config == Config()
    assert complaint.startswith(f"{file}:2: {key} must be a whole number from 1 to {highest}")


def test_a_keepalive_time_may_have_a_unit_if_it_is_whole_seconds(tmp_path: Path) -> None:
    write(tmp_path, "[Keepalive]\nIdleSec=1min\nIntervalSec=2000ms\nCount=3s\n")
    config, (complaint,) = load(tmp_path)
    assert config == Config(keepalive=Keepalive(60, 2))
    assert "Count" in complaint


def test_drop_ins_come_after_the_main_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "[Audit]\nIntervalSec=1\n[Keepalive]\nIdleSec=1\nIntervalSec=1\nCount=1\n")
    write(tmp_path, "[Keepalive]\nIdleSec=2\nIntervalSec=2\nCount=2\n", "10-a.conf")
    write(tmp_path, "[Keepalive]\nIntervalSec=3\nCount=3\n", "20-b.conf", "usr/lib")
    write(tmp_path, "[Keepalive]\nCount=4\n", "30-c.conf", "run")
    write(tmp_path, "[Keepalive]\nCount=9\n", "40-d.conf.disabled")
    write(tmp_path, "[Keepalive]\nCount=9\n", ".50-e.conf")
    assert load(tmp_path) == (Config(1.0, Keepalive(2, 3, 4)), [])


def test_a_drop_in_replaces_the_one_of_the_same_name_elsewhere(tmp_path: Path) -> None:
    for place, directory in enumerate(DIRECTORIES, 1):
        write(tmp_path, interval(f"{place}"), "a.conf", directory.lstrip("/"))
        write(tmp_path, "", "b.conf")
        assert load(tmp_path) == (Config(audit=place), [])
    (tmp_path / f"etc/storaged-conn/{NAME}.d/a.conf").unlink()
    (tmp_path / f"etc/storaged-conn/{NAME}.d/a.conf").symlink_to("/dev/null")  # systemd's way
    assert load(tmp_path) == (Config(), [])


def test_what_was_set_before_stays_where_a_drop_in_is_wrong(tmp_path: Path) -> None:
    write(tmp_path, interval("1min"))
    write(tmp_path, interval("never"), "a.conf")
    config, complaints = load(tmp_path)
    assert config == Config(audit=60)
    assert len(complaints) == 1


def test_what_is_unknown_is_reported_with_its_line(tmp_path: Path) -> None:
    unknown = "[Audit]\nInterval=5\nintervalsec=5\n[DEFAULT]\nCount=5\n[Other]\n IdleSec=5\n"
    file = write(tmp_path, f"{unknown}[Keepalive]\nCount=6")
    config, complaints = load(tmp_path)
    assert config == Config(keepalive=Keepalive(count=6))
    assert complaints == [
        f"{file}:2: [Audit] 'Interval' is unknown; this line is ignored",
        f"{file}:3: [Audit] 'intervalsec' is unknown; this line is ignored",
        f"{file}:5: [DEFAULT] 'Count' is unknown; this line is ignored",
        f"{file}:7: [Other] 'IdleSec' is unknown; this line is ignored",
    ]


def test_what_has_no_section_is_reported_and_what_follows_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, f"Count=5\n\n{interval('5')}nonsense\n[Keepalive\nCount=5\n")
    config, complaints = load(tmp_path)
    assert config == Config(audit=5)
    assert complaints == [
        f"{file}:1: there is no [section] before 'Count=5'; this line is ignored",
        f"{file}:5: 'nonsense' cannot be understood; this line is ignored",
        f"{file}:7: [[Keepalive] 'Count' is unknown; this line is ignored",
    ]


def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path: Path) -> None:
    file = write(tmp_path, "# one\x0cpage\x0b\u2028\r\n[Audit]\r\nIntervalSec=5\r\nx\r\n")
    config, (complaint,) = load(tmp_path)
    assert config == Config(audit=5)
    assert complaint.startswith(f"{file}:4:")


def test_what_cannot_be_read_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    broken = [
        write(tmp_path, b"[Audit]\nIntervalSec=\xff\n"),
        write(tmp_path, "", "a-loop.conf"),
        tmp_path / f"etc/storaged-conn/{NAME}.d/b-folder.conf",
        tmp_path / f"etc/storaged-conn/{NAME}.d/c-nowhere.conf",
    ]
    broken[1].unlink()
    broken[1].symlink_to(broken[1])
    broken[2].mkdir()
    broken[3].symlink_to("nowhere")
    write(tmp_path, interval("5"), "z.conf")
    config, complaints = load(tmp_path)
    assert config == Config(audit=5)
    assert [one.partition(": cannot be read: ")[0] for one in complaints] == list(map(str, broken))


def test_a_folder_that_is_none_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    assert load(tmp_path) == (Config(), [])


@given(text=texts, drop_in=texts)
@example(text="[Audit]\nIntervalSec=" + "9" * 5000, drop_in="[Keepalive]\nIdleSec=" + "9" * 5000)
def test_no_text_keeps_the_service_from_starting(text: str, drop_in: str) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        files = [
            write(root, text.encode(errors="surrogatepass")),
            write(root, drop_in.encode(errors="surrogatepass"), "a.conf"),
        ]
        config, complaints = load(root)
    assert config.audit >= 0
    assert min(config.keepalive.idle, config.keepalive.interval, config.keepalive.count) >= 1
    assert all(one.startswith(tuple(f"{file}:" for file in files)) for one in complaints)
    assert not any("\n" in one for one in complaints)


def test_the_example_has_every_key_at_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    write(tmp_path, text)
    assert load(tmp_path) == (Config(), [])
    write(tmp_path, re.sub(r"^#(\w+=)", r"\1", text, flags=re.MULTILINE))
    assert load(tmp_path) == (Config(), [])
    assert keys_of(text) == sorted(known())


def test_the_example_explains_every_key() -> None:
    for before, line in itertools.pairwise(EXAMPLE.read_text().splitlines()):
        if re.match(r"#\w+=", line):
            assert before.startswith("# ")


def keys_of(text: str) -> list[str]:
    """Give what a file would set, if it were no comment."""
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif match := re.match(r"#(\w+)=", line):
            found.append(f"{section} {match[1]}")
    return sorted(found)


@pytest.mark.bus
async def test_the_service_says_what_is_wrong_and_starts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    file = write(root, interval("never"))
    async with serving(tmp_path, "--config-root", str(root)) as service:
        await service.caller.manage("simulated:a", "a")
        await service.caller.until("a", State="connected")
        assert f"{file}:2: IntervalSec must be" in service.daemon.log


@pytest.mark.bus
async def test_a_service_without_configuration_says_nothing_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path, "--config-root", str(tmp_path / "nowhere")) as service:
        assert NAME not in service.daemon.log
