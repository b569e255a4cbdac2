"""docs/latency-tables.md: its example is a table, and every kind, key, device and word is in it."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from tsexport.bench.tables import ROW_KINDS, Container, Device, latency_budgets, parse_tables
from tsexport.measurements.gating import status_word
from tsexport.types import VerdictStatus

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "latency-tables.md").read_text()
CODE = {word for span in re.findall(r"`([^`\n]+)`", TEXT) for word in re.split(r"[^\w-]+", span)}


def test_the_example_is_a_table():
    (example,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    tables = parse_tables(example, "ours.toml")
    assert [one.max_ms for one in latency_budgets("mine", "custom", tables=tables)] == [4.0]
    assert [one.name for one in tables.service_level] == ["tick"]


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_every_key_of_every_kind_is_described(kind):
    assert f"**`[[{kind}]]`**" in TEXT
    assert {item.name for item in fields(ROW_KINDS[kind])} <= CODE


def test_devices_and_words_are_all_there():
    assert set(get_args(Device)) <= CODE
    assert {item.name for item in fields(Container)} <= CODE
    words = {row.split("|")[1].strip() for row in TEXT.splitlines() if row.startswith("| ")}
    assert {status_word(status) for status in get_args(VerdictStatus)} <= words


def test_the_message_it_shows_is_the_one_that_comes():
    (example,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    with pytest.raises(
        Exception, match=r"latency row 1 of ours.toml, line 3: unknown key 'max_msec' \(did you mean 'max_ms'\?\)"
    ):
        parse_tables(example.replace("max_ms = 4.0", "max_msec = 4.0"), "ours.toml")
