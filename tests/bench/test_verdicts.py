import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.tables import LatencyTables, latency_budgets, load_tables
from tsexport.bench.verdicts import exit_code, judge
from tsexport.types import Budget, Verdict


def judge_one(budget, measurements, machine, **options):
    (verdict,) = judge([budget], measurements, machine=machine, **options)
    return verdict


def test_met_on_fewer_cores_is_met_and_says_on_what(budget, measurement, machine):
    verdict = judge_one(budget(), [measurement(10.0)], machine)
    assert (verdict.status, verdict.value_ms, verdict.artifact) == ("met", 10.0, "model-fp32")
    assert (verdict.runtime, verdict.threads) == ("onnxruntime", 2)
    assert "p90 10 ms measured with model-fp32 on onnxruntime, 2 threads, batch 1, 100 samples" in verdict.reason
    assert "on 2 cores (Example CPU, avx2); 100 ms allowed" in verdict.reason


def test_missed_on_fewer_cores_is_inconclusive(budget, measurement, machine):
    verdict = judge_one(budget(), [measurement(101.0)], machine)
    assert (verdict.status, verdict.value_ms) == ("inconclusive", 101.0)
    assert "2 of 4 cores decide nothing" in verdict.reason


def test_missed_on_four_cores_is_missed(budget, measurement, four_cores):
    slow = measurement(101.0, threads=4, machine=four_cores.machine_id)
    assert judge_one(budget(), [slow], four_cores).status == "missed"
    one_thread = measurement(101.0, threads=1, machine=four_cores.machine_id)
    verdict = judge_one(budget(), [one_thread], four_cores)
    assert verdict.status == "inconclusive"
    assert "1 of 4 cores" in verdict.reason


def test_the_budget_itself_may_be_used_up(budget, measurement, machine):
    assert judge_one(budget(), [measurement(100.0)], machine).status == "met"


def test_more_threads_than_cpu4_has_cores_are_no_measurement_of_it(budget, measurement, machine):
    verdict = judge_one(budget(), [measurement(threads=8)], machine)
    assert verdict.status == "not measured"
    assert "measured with 8 threads or more; cpu4 has 4 cores" in verdict.reason


def test_the_p90_judges_not_the_median(budget, measurement, four_cores):
    samples = (1.0,) * 80 + (200.0,) * 20
    spiky = measurement(samples_ms=samples, threads=4, machine=four_cores.machine_id)
    verdict = judge_one(budget(), [spiky], four_cores)
    assert (verdict.status, verdict.value_ms) == ("missed", 200.0)


def test_a_mean_row_is_judged_by_the_mean(budget, measurement, machine):
    spiky = measurement(samples_ms=(1.0,) * 80 + (200.0,) * 20)
    verdict = judge_one(budget(statistic="mean", samples=100), [spiky], machine)
    assert verdict.status == "met"
    assert verdict.value_ms == pytest.approx(40.8)
    assert judge_one(budget(statistic="mean", samples=101), [spiky], machine).status == "inconclusive"


def test_too_few_samples_are_inconclusive(budget, measurement, machine):
    verdict = judge_one(budget(), [measurement(1.0, samples=63)], machine)
    assert verdict.status == "inconclusive"
    assert "63 samples of model-fp32; the p90 needs 64" in verdict.reason
    assert judge_one(budget(), [measurement(1.0, samples=64)], machine).status == "met"


def test_the_fastest_of_the_rows_own_precision_and_batch_is_judged(budget, measurement, machine):
    verdict = judge_one(
        budget(),
        [
            measurement(30.0, artifact="slow"),
            measurement(20.0, artifact="fast", runtime="openvino"),
            measurement(1.0, artifact="int8", precision="int8"),
            measurement(5.0, artifact="batched", batch=10),
        ],
        machine,
    )
    assert (verdict.artifact, verdict.runtime, verdict.value_ms) == ("fast", "openvino", 20.0)


def test_a_row_of_another_precision_or_batch_is_not_measured(budget, measurement, machine):
    verdict = judge_one(budget(precision="int8"), [measurement()], machine)
    assert (verdict.status, verdict.artifact, verdict.value_ms) == ("not measured", None, None)
    assert "no int8 measurement at batch 1" in verdict.reason
    assert judge_one(budget(batch=1000), [measurement()], machine).status == "not measured"


def test_measurements_of_another_machine_are_ignored(budget, measurement, machine):
    assert judge_one(budget(), [measurement(machine="elsewhere")], machine).status == "not measured"


@pytest.mark.parametrize("device", ["cpu", "any"])
def test_cpu_and_any_include_cpu4(budget, measurement, machine, device):
    assert judge_one(budget(device=device), [measurement()], machine).status == "met"
    assert judge_one(budget(device=device), [measurement(101.0)], machine).status == "missed"


@pytest.mark.parametrize("device", ["a100", "t4", "jetson-nano", "rtx3070", "cpu16", "gpu"])
def test_other_devices_are_not_measured(budget, measurement, machine, device):
    verdict = judge_one(budget(device=device), [measurement()], machine)
    assert verdict.status == "not measured"
    assert f"a budget of {device}; measured on cpu4: Example CPU, 2 cores" in verdict.reason


def test_http_rows_are_left_to_serve(budget, measurement, machine):
    verdict = judge_one(budget(via="http"), [measurement()], machine)
    assert verdict.status == "not measured"
    assert "the benchmark of `tsexport serve` judges it" in verdict.reason


def test_a_claim_of_slowness_is_refuted_or_not_but_never_missed(budget, measurement, machine):
    claim = budget(device="cpu", max_ms=None, min_ms=500.0)
    refuted = judge_one(claim, [measurement(2.0)], machine)
    assert (refuted.status, refuted.value_ms) == ("refuted", 2.0)
    assert "expects 500 ms or more: a figure to refute, no budget" in refuted.reason
    held = judge_one(claim, [measurement(600.0)], machine)
    assert (held.status, held.value_ms) == ("inconclusive", 600.0)
    assert "not refuted here" in held.reason


def test_a_formula_over_other_models_is_not_measured(budget, measurement, machine):
    verdict = judge_one(budget(device="any", max_ms=None, formula="max of base models"), [measurement()], machine)
    assert verdict.status == "not measured"
    assert "max of base models" in verdict.reason


def test_a_row_that_its_device_cannot_meet_is_not_possible(machine):
    (row,) = [b for b in latency_budgets("sfno-hybrid", "weather") if b.device == "jetson-nano"]
    verdict = judge_one(row, [], machine)
    assert verdict.status == "not possible"
    assert "1.26 s" in verdict.reason


def test_exactly_one_published_row_cannot_be_met():
    assert sum("cannot be met there" in row.caveat for row in load_tables().latency) == 1


def test_a_caveat_is_part_of_the_reason(budget, measurement, machine):
    verdict = judge_one(budget(caveat="3 ms is the sum"), [measurement()], machine)
    assert verdict.status == "met"
    assert verdict.reason.endswith("Caveat: 3 ms is the sum")


def test_throughput_counts_samples_or_requests(budget, measurement, four_cores):
    ten = measurement(10.0, batch=32, threads=4, machine=four_cores.machine_id)
    row = budget(kind="throughput", max_ms=None, batch=32, min_samples_per_s=3200.0)
    verdict = judge_one(row, [ten], four_cores)
    assert (verdict.status, verdict.value_per_s) == ("met", pytest.approx(3200.0))
    requests = budget(kind="throughput", max_ms=None, batch=32, min_requests_per_s=101.0)
    missed = judge_one(requests, [ten], four_cores)
    assert (missed.status, missed.value_per_s) == ("missed", pytest.approx(100.0))


def test_memory_counts_what_model_and_runtime_add(budget, measurement, machine):
    row = budget(kind="memory", max_ms=None, batch=None, max_memory_mb=150.0)
    met = judge_one(row, [measurement()], machine)
    assert (met.status, met.value_mb) == ("met", 150.0)
    more = measurement(batch=32, peak_memory_bytes=201 * 10**6)
    unknown = judge_one(row, [measurement(), more], machine)
    assert (unknown.status, unknown.value_mb) == ("inconclusive", 151.0)
    assert "model alone" in unknown.reason


def test_every_published_latency_row_gets_a_verdict_with_a_reason(measurement, machine):
    tables = load_tables()
    models = {row.model for row in (*tables.latency, *tables.throughput)}
    budgets = [
        budget
        for model in sorted(models)
        for component in (None, "h-module", "l-module", "conditioning-heads")
        for budget in latency_budgets(model.removeprefix("family:"), model.removeprefix("family:"), component)
    ]
    verdicts = judge(budgets, [measurement()], machine=machine)
    assert sum(v.budget.kind == "latency" for v in verdicts) == len(tables.latency)
    assert sum(v.budget.kind == "throughput" for v in verdicts) == len(tables.throughput)
    assert all(v.reason and v.budget.source for v in verdicts)
    assert isinstance(tables, LatencyTables)


def test_where_nothing_was_measured_no_row_says_that_it_was(budget, machine):
    verdict = judge_one(budget(device="orin-nano"), [], machine)
    assert (verdict.status, verdict.reason) == ("not measured", "a budget of orin-nano; nothing was measured")
    assert judge_one(budget(), [], machine).reason == "a budget of cpu4; nothing was measured"


def test_the_published_nano_row_keeps_its_caveat_where_nothing_was_measured(machine):
    verdicts = judge(latency_budgets("sfno-hybrid", "sfno"), [], machine=machine)
    (row,) = (one for one in verdicts if one.budget.device == "jetson-nano" and one.budget.kind == "latency")
    assert row.status == "not possible"
    assert "the original Jetson Nano (sm_53) has no INT8 arithmetic" in row.reason


@given(st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_a_latency_verdict_is_the_comparison_of_two_numbers(ms, limit):
    from tsexport.bench.fingerprint import fingerprint
    from tsexport.types import Measurement

    here = fingerprint()
    measured = Measurement("a", "r", "fp32", 1, 1, here.machine_id, (ms,) * 64, 1.0, 2, 1, 1, 1)
    row = Budget(kind="latency", model="m", device="cpu", precision="fp32", batch=1, max_ms=limit)
    (verdict,) = judge([row], [measured], machine=here)
    assert verdict.status == ("met" if ms <= limit else "missed")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 6),
        (["not measured", "not possible", "inconclusive"], 6),
        (["met", "not measured"], 0),
        (["refuted", "inconclusive"], 0),
        (["met", "missed", "not measured"], 4),
    ],
)
def test_exit_code(statuses, code, budget):
    assert exit_code([Verdict(status, budget(), "") for status in statuses]) == code
