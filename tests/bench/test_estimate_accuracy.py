"""The committed table of estimates against measured peaks: it is what the code says now, and what the fit gives."""

import dataclasses
import json

import pytest

from tsexport.bench.memory_model import RULES, Rules
from tsexport.bench.suites.estimate_cases import CASES
from tsexport.bench.suites.estimate_measure import Measured, Measuring, Peak, keep, read_measured
from tsexport.bench.suites.estimate_report import (
    NAME,
    AccuracyReport,
    markdown,
    published_rows,
    row_of,
    with_held_out,
)
from tsexport.bench.suites.memory_fit import Sample, allowed_bytes, fit
from tsexport.bench.suites.report import RESULTS
from tsexport.codec import decode_versioned
from tsexport.estimating import read_graphs
from tsexport.models.sources import identify, open_source

MB = 1_000_000
QUICK = ("tcn",)
SAME_CONSTANT_BYTES = 20_000
"""Another build of scipy may end elsewhere by so much."""


@pytest.fixture(scope="module")
def report() -> AccuracyReport:
    text = (RESULTS / f"{NAME}.json").read_text(encoding="utf-8")
    version = json.loads(text)["schema_version"]
    return decode_versioned(AccuracyReport, text, version=version, what=NAME, next_step="run the suite")


def of_case(label):
    return next(case for case in CASES if case.label == label)


def test_every_row_is_of_a_case_and_every_runtime_and_batch_is_there_or_said_to_be_missing(report):
    expected = {(case.label, runtime, batch) for case in CASES for batch in case.batches for runtime in RULES}
    found = [(row.model, row.runtime, row.batch) for row in report.rows]
    assert len(found) == len(set(found))
    missing = expected - set(found)
    assert set(found) <= expected
    assert all(any(one.startswith(model) for one in report.failed) for model, _, _ in missing)


def recomputed(report, label):
    case = of_case(label)
    graphs = read_graphs(open_source(identify(case.model, settings=dict(case.settings))))
    for row in report.rows:
        if row.model == label:
            peak = Peak(
                label, row.runtime, row.batch, row.runs, row.measured_bytes, row.lowest_bytes, row.highest_bytes
            )
            yield row, row_of(case, graphs, peak)


@pytest.mark.parametrize("label", QUICK)
def test_the_table_is_what_the_code_says_now(report, label):
    pairs = list(recomputed(report, label))
    assert pairs
    for row, now in pairs:
        assert dataclasses.replace(now, held_out_bytes=row.held_out_bytes) == row


@pytest.mark.slow
@pytest.mark.parametrize("label", [case.label for case in CASES if case.label not in QUICK])
def test_the_whole_table_is_what_the_code_says_now(report, label):
    for row, now in recomputed(report, label):
        assert dataclasses.replace(now, held_out_bytes=row.held_out_bytes) == row


def test_the_constants_are_what_the_fit_gives(report):
    for runtime, rules in RULES.items():
        found = fit([row.sample for row in report.rows if row.runtime == runtime])
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(rules), abs=SAME_CONSTANT_BYTES)


def test_held_out_estimates_are_made_without_any_size_of_the_model(report):
    for row, now in zip(report.rows, with_held_out(report.rows), strict=True):
        assert now.held_out_bytes == pytest.approx(row.held_out_bytes, abs=SAME_CONSTANT_BYTES * sum(row.counts))
    for runtime in RULES:
        row = next(one for one in report.rows if one.runtime == runtime)
        others = [one.sample for one in report.rows if one.runtime == runtime and one.name != row.name]
        expected = row.simulated_bytes + fit(others).bytes_for(row.counts)
        assert row.held_out_bytes == pytest.approx(expected, abs=SAME_CONSTANT_BYTES * sum(row.counts))


def test_estimates_are_the_simulation_and_the_constants(report):
    for row in report.rows:
        assert row.estimated_bytes == row.simulated_bytes + RULES[row.runtime].bytes_for(row.counts)
        assert row.lowest_bytes <= row.measured_bytes <= row.highest_bytes


def test_ours_is_nearer_than_each_published_figure(report):
    assert report.published == published_rows(report.rows)
    assert report.published
    for one in report.published:
        ours = max(one.estimated_bytes / one.measured_bytes, one.measured_bytes / one.estimated_bytes)
        assert ours < one.factor


def test_the_page_is_made_of_the_rows(report):
    assert (RESULTS / f"{NAME}.md").read_text(encoding="utf-8") == markdown(report)


def sample(measured, simulated, counts, name="m", weights=0):
    return Sample(name, weights, round(measured * MB), round(simulated * MB), counts)


def test_a_fit_finds_the_constants_and_one_peak_of_luck_moves_them_little():
    rows = [sample(3 + 0.1 * steps, 0, (1, steps, 0, 0)) for steps in range(10, 200, 20)]
    assert dataclasses.astuple(fit(rows)) == pytest.approx((3 * MB, 0.1 * MB, 0, 0), rel=0.01)
    lucky = fit([*rows, sample(200, 0, (1, 50, 0, 0))])
    assert lucky.once == pytest.approx(3 * MB, abs=1.5 * MB)


def test_constants_are_never_negative_and_need_samples():
    found = fit([sample(1, 5, (1, 10, 0, 0)), sample(2, 9, (1, 20, 0, 0))])
    assert found == Rules(0, 0, 0, 0)
    with pytest.raises(ValueError, match="no sample"):
        fit([])


def test_what_is_allowed_depends_on_the_weights():
    assert allowed_bytes(20 * MB, 100 * MB) == 25 * MB
    assert allowed_bytes(20 * MB - 1, 100 * MB) == 5 * MB


def test_peaks_are_kept_and_read_again(report, tmp_path):
    measured = Measured(report.machine, 2, "glibc", ("a 1",), (Peak("lstm", "openvino", 1, 2, 3, 2, 4),))
    assert read_measured(tmp_path) is None
    keep(measured, tmp_path)
    assert read_measured(tmp_path) == measured
    assert measured.alike(dataclasses.replace(measured, peaks=()))
    assert not measured.alike(dataclasses.replace(measured, packages=("a 2",)))


def test_runs_that_differ_are_repeated():
    how = Measuring(threads=2, runs=2, until_s=0)
    assert not how.is_done([100])
    assert how.is_done([100, 104])
    assert not how.is_done([100, 120])
    assert how.is_done([100, 120, 100, 120])
