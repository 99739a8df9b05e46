# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

from storaged_conn.ctl.client import Failure
from storaged_conn.ctl.options import Value, typed

KNOWN = {"read-only": "b", "timeout": "x", "mount-options": "as", "mountpoint": "s", "secret": "ay"}


@pytest.mark.parametrize(
    ("texts", "value"),
    [(("true", "yes", "1", "Yes"), ("b", True)), (("false", "no", "0", "FALSE"), ("b", False))],
)
def test_truth_values_are_written_in_many_ways(
    texts: tuple[str, ...], value: tuple[str, Value]
) -> None:
    assert [typed([("read-only", text)], KNOWN)["read-only"] for text in texts] == [value] * 4


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("timeout", "-12", ("x", -12)),
        ("timeout", "9223372036854775807", ("x", 2**63 - 1)),
        ("mountpoint", "a,b=c", ("s", "a,b=c")),
        ("mountpoint", "", ("s", "")),
        ("mount-options", "", ("as", [])),
        ("unheard-of", "1", ("s", "1")),
    ],
)
def test_each_option_gets_the_type_that_the_service_wants(
    key: str, text: str, value: tuple[str, Value]
) -> None:
    assert typed([(key, text)], KNOWN) == {key: value}


def test_a_list_is_written_with_commas_or_in_several_options() -> None:
    pairs = [("mount-options", "noatime,sync"), ("read-only", "yes"), ("mount-options", "uid=0")]
    assert typed(pairs, KNOWN)["mount-options"] == ("as", ["noatime", "sync", "uid=0"])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("read-only", "perhaps")], ["read-only", "perhaps", "true"]),
        ([("timeout", "1s")], ["timeout", "1s", "digits"]),
        ([("timeout", str(2**63))], ["timeout", "64 bits"]),
        ([("mountpoint", "/a"), ("mountpoint", "/b")], ["mountpoint", "2 times", "once"]),
        ([("unheard-of", "1"), ("unheard-of", "1")], ["unheard-of", "once"]),
        ([("secret", "hunter2")], ["option secret is a secret", "--secret secret=FILE"]),
    ],
)
def test_a_wrong_value_is_wrong_usage_that_names_the_option(
    pairs: list[tuple[str, str]], words: list[str]
) -> None:
    with pytest.raises(Failure) as caught:
        typed(pairs, KNOWN)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "hunter2" not in str(caught.value)
    assert caught.value.status == 2
    assert caught.value.name == "org.storage.Connection.Error.InvalidArgument"
