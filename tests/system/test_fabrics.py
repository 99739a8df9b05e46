# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel's answers become; what it does to a controller is in the guest."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storaged_conn.errors import (
    NoNetworkError,
    ServerRefusedError,
    TroubleError,
    UnreachableError,
    UnusableError,
)
from storaged_conn.system import fabrics, fabrics_child
from storaged_conn.system.fabrics import ThereError, UnexplainedError, explain

needs_none = pytest.mark.skipif(
    os.path.exists(fabrics_child.FABRICS), reason="this kernel can connect NVMe"
)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, ServerRefusedError),
        (errno.ETIMEDOUT, UnreachableError),
        (errno.ENETUNREACH, NoNetworkError),
        (errno.EINVAL, TroubleError),
        (errno.ENOENT, UnusableError),
        (errno.EALREADY, ThereError),
        (errno.EIO, UnexplainedError),
    ],
)
def test_every_answer_of_the_kernel_becomes_an_error(number: int, kind: type[Exception]) -> None:
    error = explain(number)
    assert type(error) is kind
    assert os.strerror(number) in str(error)


@needs_none
async def test_a_kernel_without_nvme_says_so() -> None:
    for doing in (fabrics.connect(b"transport=tcp"), fabrics.check(b"transport=tcp")):
        with pytest.raises(UnusableError, match="nvme-fabrics"):
            await doing


async def test_what_is_gone_is_deleted() -> None:
    await fabrics.delete("nvme4095", 1, silent=True)


async def test_a_server_that_nobody_waits_for_is_hurried_to_without_harm() -> None:
    await fabrics.hurry("127.0.0.1", 4420)
    await fabrics.hurry("::1", 4420)


def child(directory: Path, line: bytes, **names: str) -> str:
    """Run the child's connect with other files in place of the kernel's."""
    source = Path(fabrics_child.__file__).read_text()
    for name, value in names.items():
        before = source.partition(f'\n{name} = "')[2].partition('"')[0]
        source = source.replace(f'\n{name} = "{before}"', f'\n{name} = "{value}"')
    program = directory / "child.py"
    program.write_text(source)
    argv = [sys.executable, "-I", "-S", str(program), "connect"]
    done = subprocess.run(argv, input=line, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def kernel(tmp_path: Path) -> dict[str, str]:
    """Give files that look like the kernel's."""
    (tmp_path / "fabrics").write_text("instance=-1,cntlid=-1,transport=%s,dhchap_secret=%s\n")
    (tmp_path / "class").mkdir()
    names = {"FABRICS": "fabrics", "CLASS": "class"}
    return {name: str(tmp_path / file) for name, file in names.items()}


def test_a_word_that_the_kernel_does_not_know_is_named(
    tmp_path: Path, kernel: dict[str, str]
) -> None:
    assert child(tmp_path, b"transport=tcp,tls", **kernel) == "lacks tls"
    assert "tls" not in (tmp_path / "fabrics").read_text()
