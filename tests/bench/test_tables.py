import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest

from tsexport.bench.tables import ROW_KINDS, latency_budgets, load_tables, parse_tables
from tsexport.errors import ConfigurationError, UsageError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
CARRIED = files("tsexport.bench") / "data" / "latency-tables.toml"
RAW = tomllib.loads(CARRIED.read_text())
ROWS = {"latency": 30, "throughput": 2, "memory": 22, "gain": 12, "cpu_load": 1, "parity": 1,
        "published_estimate": 13, "service_level": 3}  # fmt: skip


def as_plain(value):
    """Tuples and mappings as TOML gives them."""
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, tuple) else value


def test_every_kind_has_as_many_rows_as_the_file():
    tables = load_tables()
    assert {kind: len(getattr(tables, kind)) for kind in ROW_KINDS} == ROWS
    assert {kind: len(rows) for kind, rows in RAW.items() if kind != "schema"} == ROWS
    assert len(tables) == 84


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, count in ROWS.items() for i in range(count)])
def test_no_key_of_any_row_is_dropped_or_changed(kind, number):
    raw, row = RAW[kind][number], getattr(load_tables(), kind)[number]
    assert row.source == raw["source"]
    assert row.caveat == raw.get("caveat", "")
    assert {key: as_plain(asdict(row)[key]) for key in raw} == raw


@pytest.mark.skipif(not (SHARED / "spec/latency-tables.toml").exists(), reason="the published tables are not here")
def test_the_carried_tables_are_the_published_ones():
    assert CARRIED.read_bytes() == (SHARED / "spec/latency-tables.toml").read_bytes()


def test_a_models_budgets_are_its_own_rows_then_its_familys():
    budgets = latency_budgets("patchtst-cpu", "transformer")
    assert [(b.kind, b.model, b.device, b.batch, b.max_ms, b.min_ms, b.via) for b in budgets] == [
        ("latency", "patchtst-cpu", "cpu4", 1, 100.0, None, None),
        ("latency", "patchtst-cpu", "cpu4", 10, 500.0, None, None),
        ("latency", "patchtst-cpu", "cpu4", 1, 100.0, None, "http"),
        ("throughput", "patchtst-cpu", "cpu4", None, None, None, "http"),
        ("memory", "patchtst-cpu", "cpu4", None, None, None, None),
        ("latency", "family:transformer", "rtx4090", 1, 50.0, None, None),
        ("latency", "family:transformer", "cpu", 1, None, 500.0, None),
    ]
    assert budgets[2].statistic == "mean"
    assert budgets[2].samples == 100
    assert budgets[3].min_requests_per_s == 10.0
    assert budgets[4].max_memory_mb == 500.0
    assert all(budget.source for budget in budgets)


def test_a_family_row_applies_to_every_model_of_the_family():
    rows = latency_budgets("a-users-own-model", "cnn")
    assert [(b.device, b.max_ms) for b in rows] == [("rtx3070", 15.0), ("cpu", 150.0)]
    assert latency_budgets("a-users-own-model", "linear") == ()


def test_components_have_their_own_rows():
    assert [b.component for b in latency_budgets("hrm-27m", "hrm")] == ["total"]
    assert [b.max_ms for b in latency_budgets("hrm-27m", "hrm", "l-module")] == [12.0]


ROW = '[[latency]]\nmodel = "m"\ndevice = "cpu4"\nbatch = 1\nsource = "s"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = [", "tables.toml is no TOML"),
        ("", "tables.toml has schema None; this version reads schema 1"),
        ("schema = 2", "has schema 2"),
        ("schema = true", "has schema True"),
        ("schema = 1\nlatency = " + "[" * 5000, "tables.toml is no TOML: maximum recursion depth"),
        ("schema = 1\n" + ROW + "max_ms = " + "1" * 5000, "tables.toml is no TOML: Exceeds the limit"),
        ('schema = 1\n[[latncy]]\nmodel = "m"', r"'latncy' \(did you mean 'latency'\?\); kinds are latency"),
        ("schema = 1\n[latency]\nmodel = 1", r"latency is one table; write \[\[latency\]\]"),
        ("schema = 1\n" + ROW + "max_msec = 1.0", r"latency row 1 of tables.toml, line 2: unknown key 'max_msec'"),
        ("schema = 1\n" + ROW, "latency row 1 of tables.toml, line 2 has none of max_ms, min_ms and formula"),
        (
            "schema = 1\n" + ROW + 'max_ms = "1"',
            'latency row 1 of tables.toml, line 2: max_ms: is "1", needed is a number',
        ),
        ("schema = 1\n" + ROW.replace("cpu4", "cpu44") + "max_ms = 1.0", 'device: is "cpu44", allowed are .any.'),
        ("schema = 1\n" + ROW.replace('source = "s"', "") + "max_ms = 1.0", "tables.toml, line 2: missing 'source'"),
        ("schema = 1", "tables.toml has no rows; kinds are latency"),
        ("schema = 1\nlatency = []", "tables.toml has no rows"),
        (
            "schema = 1\n" + ROW + "max_ms = 1.0\n\n\n" + ROW + "max_ms = -1",
            r"latency row 2 of tables.toml, line 10: max_ms is -1; allowed are numbers from 0 on",
        ),
        (
            "schema = 1\n" + ROW + "max_ms = 1.0\nrange_ms = [5, 3]",
            r"range_ms is \[5, 3\]; the first must not be the larger",
        ),
        ("schema = 1\n" + ROW + "max_ms = 1.0\nrange_ms = [5]", r"line 2: range_ms: has 1 items, needed are 2"),
        (
            "schema = 1\n" + ROW.replace("batch = 1", "batch = 0") + "max_ms = 1.0",
            "batch is 0; allowed are whole numbers from 1 on",
        ),
        ("schema = 1\n" + ROW.replace('"m"', '" "') + "max_ms = 1.0", "line 2: model is empty"),
        ("schema = 1\n" + ROW.replace('"m"', "7") + "max_ms = 1.0", "line 2: model: is 7, needed is a string"),
        ('schema = 1\n[[gain]]\nmodel = "m"\nsource = "s"', "gain row 1 of tables.toml, line 2 has none of speedup"),
        (
            'schema = 1\n[[memory]]\nmodel = "m"\nsource = "s"',
            "memory row 1 of tables.toml, line 2 has none of parameters",
        ),
        ('schema = 1\n[[memory]]\nmodel = "m"\nsource = "s"\nmodel_mb = {a = -2}', "model_mb.a is -2; allowed"),
        (
            'schema = 1\nmemory = [{model = "m", source = "s", weights = 2}]',
            r"memory row 1 of tables.toml: unknown key 'weights' \(did you mean 'weights_mb'",
        ),
        (
            'schema = 1\n[[throughput]]\nmodel = "m"\ndevice = "cpu"\nprecision = "fp32"\nsource = "s"',
            "has none of min_rps and min_samples_per_s",
        ),
    ],
)  # fmt: skip
def test_broken_tables_say_what_is_wrong(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_tables(text, "tables.toml")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.toml cannot be read"):
        load_tables(tmp_path / "absent.toml")


def test_a_users_own_tables_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\n" + ROW + "max_ms = 7")
    tables = load_tables(path)
    assert [b.max_ms for b in latency_budgets("m", "", tables=tables)] == [7.0]
