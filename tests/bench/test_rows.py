from typing import get_args

from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.rows import (
    budget_text,
    measurement_rows,
    megabytes,
    milliseconds,
    race_rows,
    status_word,
    verdict_rows,
)
from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.verdicts import judge
from tsexport.types import VerdictStatus


def test_a_measured_row_and_one_that_is_not(budget, measurement, machine):
    verdicts = judge([budget(range_ms=(50.0, 80.0)), budget(device="a100")], [measurement(12.34)], machine=machine)
    measured, absent = verdict_rows(verdicts)
    assert (measured.budget, measured.published, measured.value) == ("p90 <= 100 ms", "50-80 ms", "12.3 ms")
    assert (measured.obtained, measured.status, measured.threads) == ("measured", "pass", "2")
    assert (absent.obtained, absent.status, absent.value, absent.artifact) == (
        "not measured",
        "not measured",
        "n/a",
        "",
    )
    assert absent.source == "a document"


def test_values_of_throughput_and_memory_have_their_units(budget, measurement, machine):
    verdicts = judge(
        [
            budget(kind="throughput", max_ms=None, min_samples_per_s=1.0),
            budget(kind="memory", max_ms=None, batch=None, max_memory_mb=500.0),
        ],
        [measurement(10.0)],
        machine=machine,
    )
    assert [row.value for row in verdict_rows(verdicts)] == ["100/s", "150 MB"]


def test_each_kind_of_budget_reads_as_what_it_asks_for(budget):
    assert budget_text(budget(statistic="mean")) == "mean <= 100 ms"
    assert budget_text(budget(max_ms=None, min_ms=500.0)) == "claims >= 500 ms"
    assert budget_text(budget(max_ms=None, formula="max of base models")) == "max of base models"
    assert budget_text(budget(max_ms=None, min_requests_per_s=10.0)) == ">= 10 requests/s"
    assert budget_text(budget(max_ms=None, min_samples_per_s=100.0)) == ">= 100 samples/s"
    assert budget_text(budget(max_ms=None, max_memory_mb=500.0)) == "<= 500 MB"


def test_percentiles_with_too_few_samples_are_not_available(measurement):
    (row,) = measurement_rows([measurement(2.0, samples=100, batch=10)])
    assert (row.p50, row.p90, row.p99, row.mean) == ("2 ms", "2 ms", "n/a", "2 ms")
    assert (row.throughput, row.load, row.peak_memory, row.samples) == ("5000/s", "50 ms", "200 MB", "100")
    (few,) = measurement_rows([measurement(2.0, samples=5)])
    assert (few.p50, few.p90) == ("n/a", "n/a")


def test_race_rows_are_sorted_by_speed():
    def entry(name, speedup, stable):
        return RaceEntry(name, name, "onnxruntime", 1, ((1.0,),), summarize([1.0] * 10), speedup, stable, 1.0, 1)

    result = RaceResult(1, "slow", 1, 1, 1.0, (
        entry("slow", Ratio(1.0, 0.0, None, 0.95), True), entry("fast", Ratio(2.0, 1.9, 2.1, 0.95), False)
    ))  # fmt: skip
    rows = race_rows(result)
    assert [(row.name, row.speedup, row.interval) for row in rows] == [
        ("fast", "2.00x", "1.90-2.10"), ("slow", "1.00x", "n/a"),
    ]  # fmt: skip
    assert [bool(row.note) for row in rows] == [True, False]


def test_numbers_keep_three_digits():
    assert [milliseconds(v) for v in (None, 0.01234, 1.5, 99.94, 1234.5)] == [
        "n/a", "0.0123 ms", "1.5 ms", "99.9 ms", "1234 ms",
    ]  # fmt: skip
    assert megabytes(1_500_000) == "2 MB"


def test_statuses_read_as_the_contract_names_them():
    known = get_args(VerdictStatus)
    assert [status_word(status) for status in known] == ["pass", "miss", *known[2:]]
