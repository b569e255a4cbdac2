"""Every row of the published tables, and of every kind, reaches a bundle's `bench`, or says why nobody can judge it."""

import dataclasses

import pytest

from tsexport.bench.ensembles import MEMBERS, Member, judge_ensembles
from tsexport.bench.figure_verdicts import ArtifactSize, Subject, judge_figures
from tsexport.bench.figures import Figure, figure_text, figures_for, figures_of
from tsexport.bench.tables import ROW_KINDS, latency_budgets, load_tables, parse_tables
from tsexport.bench.use_cases import answer_use_cases
from tsexport.bench.verdicts import judge
from tsexport.models.registry import list_entries

TABLES = load_tables()
REGISTERED = {entry.name: entry.family for entry in list_entries()}
FAMILIES = {*REGISTERED.values(), "boosting", "foundation", "classical"}
NOT_REGISTERED = {
    "chronos-t5-small", "chronos-t5-base", "chronos-t5-large", "timesfm", "moirai", "random-forest",
    "logistic-regression", "svm", "xgboost",
}  # fmt: skip
"""Models that tsexport does not register.  A bundle of a user's own model of that name is held to these rows."""
ALL_ROWS = [(kind, row) for kind in ROW_KINDS for row in getattr(TABLES, kind)]
STATUSES = {"met", "missed", "inconclusive", "not measured", "not possible", "refuted"}


def subject(**changes):
    sizes = (
        ArtifactSize("onnx-fp32", "fp32", "onnx", 110_000_000),
        ArtifactSize("ts-fp32", "fp32", "torchscript", 112_000_000),
        ArtifactSize("int8", "int8", "onnx", 27_400_000),
    )
    return dataclasses.replace(Subject(27_500_000, sizes, (), {"patch_length": 16}), **changes)


def bundles_that_reach(row):
    """Return (model, family, component) of the bundles whose `bench` should judge a row; () for ensembles' own rows."""
    name, component = row.model, getattr(row, "component", None)
    component = None if component == "total" else component
    if name.startswith("family:"):
        family = name.removeprefix("family:")
        return [(next((m for m, f in REGISTERED.items() if f == family), "a-users-own"), family, component)]
    if name.startswith("ensemble:"):
        return []
    if name in REGISTERED:
        return [(name, REGISTERED[name], component)]
    if name in FAMILIES:  # printed estimates say "transformer" for any of them
        return [(next(m for m, f in REGISTERED.items() if f == name), name, component)]
    assert name in NOT_REGISTERED, name
    return [(name, "custom", component)]


@pytest.mark.parametrize(
    ("kind", "row"), ALL_ROWS, ids=lambda value: getattr(value, "model", getattr(value, "name", value))
)
def test_every_row_of_every_kind_is_reached_and_answered(kind, row, measurement, machine):
    """84 rows: by `judge` or `judge_figures` of the right bundle, by an ensemble's members, or as a use case."""
    everything = [measurement(precision=p, batch=b) for p in ("fp32", "int8") for b in (1, 10, 32, 1000)]
    if kind == "service_level":
        answers = [one for one in answer_use_cases(TABLES.service_level, everything) if one.use_case == row.name]
        assert len(answers) == len(everything)
        return
    if row.model.startswith("ensemble:"):
        _reached_by_an_ensemble(kind, row, everything)
        return
    for model, family, component in bundles_that_reach(row):
        budgets = latency_budgets(model, family, component)
        verdicts = [
            one
            for one in judge(budgets, everything, machine=machine)
            if (one.budget.model, one.budget.source, one.budget.device) == (row.model, row.source, row.device)
        ] if kind in ("latency", "throughput") else []  # fmt: skip
        mine = figures_of(dataclasses.replace(_EMPTY, **{kind: (row,)}))
        figures = [
            one for one in judge_figures(figures_for(TABLES, model, family, component), subject()) if one.figure in mine
        ]
        assert len(figures) == len(mine), (model, mine)
        covered = getattr(row, "model_mb_max", None) is not None and any(b.max_memory_mb for b in budgets)
        assert verdicts or figures or covered
        for one in (*verdicts, *figures):
            assert one.status in STATUSES
            assert one.reason
            if row.caveat:
                assert row.caveat in one.reason


_EMPTY = dataclasses.replace(TABLES, **dict.fromkeys(ROW_KINDS, ()))


def _reached_by_an_ensemble(kind, row, everything):
    if kind == "latency":
        names = MEMBERS.get(row.model, ("lstm", "gru"))
        verdicts = judge_ensembles(TABLES, [Member(name, tuple(everything)) for name in names])
        (mine,) = [one for one in verdicts if (one.budget.model, one.budget.max_ms) == (row.model, row.max_ms)]
        assert mine.reason
        assert row.caveat in mine.reason
        return
    figures = figures_of(dataclasses.replace(_EMPTY, **{kind: (row,)}))
    members = [one.detail for one in figures if one.quantity == "model in the process"]
    for name in members:
        assert [one for one in figures_for(TABLES, name, "any") if one in figures]
    of_all = [one for one in figures if one.quantity != "model in the process"]
    for one in judge_figures(of_all, subject()):
        assert one.status == "not measured"
        assert "each bundle was measured in its own" in one.reason


def judged(figure, known):
    (verdict,) = judge_figures([figure], known)
    return verdict


def figure(**changes):
    return dataclasses.replace(Figure("memory", "m", "parameters", "", 27.3e6, 27.3e6, source="s"), **changes)


@pytest.mark.parametrize(
    ("parameters", "status"), [(27_300_000, "met"), (28_600_000, "met"), (26_000_000, "met"), (28_700_000, "refuted")]
)
def test_a_described_number_is_met_within_its_rounding(parameters, status):
    assert judged(figure(), subject(parameters=parameters)).status == status


@pytest.mark.parametrize(("parameters", "status"), [(1_000_000, "met"), (1_000_001, "missed")])
def test_a_budget_of_parameters_is_met_or_missed(parameters, status):
    row = figure(low=None, high=1e6, is_budget=True)
    verdict = judged(row, subject(parameters=parameters))
    assert (verdict.status, verdict.value) == (status, float(parameters))


def test_weights_are_those_of_the_onnx_file_of_the_precision():
    verdict = judged(figure(quantity="weights", unit="MB", low=109.0, high=109.0, precision="fp32"), subject())
    assert (verdict.status, verdict.value) == ("met", 110.0)
    assert "the files of onnx-fp32" in verdict.reason
    absent = judged(figure(quantity="weights", precision="bf16"), subject())
    assert (absent.status, absent.reason) == ("not measured", "the bundle has no bf16 artifact")


def test_a_size_ratio_is_between_files_of_one_format():
    gain = figure(kind="gain", quantity="size before / after", unit="x", transform="int8", low=4.0, high=4.0)
    verdict = judged(gain, subject())
    assert verdict.value == pytest.approx(110 / 27.4)
    assert verdict.status == "met"
    other = (ArtifactSize("a", "fp32", "torchscript", 100), ArtifactSize("b", "int8", "onnx", 10))
    assert judged(gain, subject(artifacts=other)).reason == "needs fp32 and int8 artifacts of one format"
    memory = dataclasses.replace(gain, quantity="memory after / before", low=0.5, high=0.5)
    assert judged(memory, subject()).value == pytest.approx(27.4 / 110)
    assert judged(memory, subject()).status == "met"
    worse = (ArtifactSize("a", "fp32", "onnx", 100), ArtifactSize("b", "int8", "onnx", 90))
    assert judged(memory, subject(artifacts=worse)).status == "refuted"


def test_a_pruned_bundle_answers_for_what_is_left():
    left = figure(kind="gain", quantity="parameters after / before", transform="prune", low=0.7, high=0.7)
    assert judged(left, subject()).reason == "the bundle is of a model that was not pruned"
    assert judged(left, subject(pruned_parameters=0.68)).status == "met"
    assert judged(left, subject(pruned_parameters=0.9)).status == "refuted"
    both = figure(kind="gain", quantity="size before / after", transform="int8+prune", low=4.0, high=4.0)
    assert judged(both, subject()).status == "not measured"
    assert judged(both, subject(pruned_parameters=0.7)).value == pytest.approx(110 / 27.4 / 0.7)
    speed = figure(kind="gain", quantity="speedup", transform="prune", low=1.4, high=1.4)
    assert "the unpruned model is not in this bundle" in judged(speed, subject()).reason


@pytest.mark.parametrize(("int8_ms", "status"), [(4.0, "met"), (5.1, "refuted"), (20.0, "refuted")])
def test_a_speedup_is_between_the_fastest_of_both_precisions(measurement, int8_ms, status):
    gain = figure(kind="gain", quantity="speedup", unit="x", transform="int8", low=2.0, high=3.0)
    times = (measurement(30.0), measurement(10.0), measurement(int8_ms, precision="int8", artifact="int8"))
    verdict = judged(gain, subject(measurements=times))
    assert (verdict.status, verdict.value) == (status, pytest.approx(10.0 / int8_ms))
    assert "needs fp32 and int8 measurements at batch 1" in judged(gain, subject(measurements=times[:2])).reason


def test_memory_of_processes(measurement):
    times = (measurement(), measurement(runtime="torchscript", peak_memory_bytes=3 * 10**9))
    known = subject(measurements=times)
    host = figure(quantity="host memory", unit="GB", low=None, high=2.0, is_budget=True)
    assert (judged(host, known).status, judged(host, known).value) == ("missed", 3.0)
    assert judged(host, subject()).reason == "no artifact measurement with memory"
    torch = figure(quantity="process with the PyTorch runtime", low=1024.0, high=2048.0, device="cpu4")
    assert (judged(torch, known).status, judged(torch, known).value) == ("refuted", 3000.0)
    assert judged(torch, subject(measurements=times[:1])).reason == "nothing was measured in PyTorch"
    model = figure(quantity="model in the process", unit="MB", low=100.0, high=100.0)
    assert (judged(model, known).status, judged(model, known).value) == ("inconclusive", 150.0)
    assert judged(dataclasses.replace(model, low=200.0, high=200.0), known).status == "met"
    assert judged(model, subject()).status == "not measured"
    needs = figure(quantity="memory of the machine", unit="GB", low=2.0, high=None)
    assert judged(needs, known).status == "refuted"


def test_a_model_without_parameters_or_patches_says_so():
    assert "does not say how many parameters" in judged(figure(), subject(parameters=0)).reason
    pairs = figure(kind="gain", quantity="attention operations before / after", low=256.0, high=256.0)
    assert judged(pairs, subject()).status == "met"
    assert judged(pairs, subject(config={})).reason == "the model's configuration has no patch_length"


def test_what_cannot_be_is_not_possible_and_other_devices_are_not_measured():
    int8 = [one for one in figures_for(TABLES, "sfno-hybrid", "spectral") if one.quantity == "parameters in int8"]
    (verdict,) = judge_figures(int8, subject())
    assert verdict.status == "not possible"
    assert "125 M divides the number of parameters" in verdict.reason
    gpu = figure(kind="gain", quantity="throughput gain", device="a100, h200", precision="bf16", low=1.3, high=1.3)
    assert judged(gpu, subject()).reason == "a figure of a100, h200; measured on cpu4"
    assert "needs fp32 and bf16 measurements" in judged(dataclasses.replace(gpu, device=None), subject()).reason


def test_figures_read_as_what_they_say():
    texts = {figure_text(one) for one in figures_of(TABLES)}
    assert {"<= 4 MB", "2-3 x", "4 x", "0.5 x", ">= 16 GB", "1024-2048 MB", "5-10 %", "<= 1e-06", "2.73e+07"} <= texts
    assert figure_text(figure(low=None, high=None)) == ""


def test_a_users_own_figures_are_judged():
    text = 'schema = 1\n[[memory]]\nmodel = "mine"\nweights_mb_max = 5\nsource = "us"\n'
    (verdict,) = judge_figures(figures_for(parse_tables(text), "mine", "custom"), subject())
    assert verdict.status == "missed"


# --- ensembles -------------------------------------------------------------------------------------------------------


def ensemble(*limits, measurement, **members):
    rows = "".join(
        f'[[latency]]\nmodel = "ensemble:voting"\ndevice = "cpu4"\nbatch = 1\nmax_ms = {ms}\nsource = "us"\n'
        for ms in limits
    )
    those = [Member(name.replace("_", "-"), (measurement(ms),)) for name, ms in members.items()]
    return judge_ensembles(parse_tables("schema = 1\n" + rows), those)


@pytest.mark.parametrize(
    ("limit", "status", "value"), [(8.0, "met", 8.0), (7.9, "inconclusive", 8.0), (4.9, "missed", 5.0)]
)
def test_an_ensemble_lies_between_its_slowest_member_and_their_sum(measurement, limit, status, value):
    (verdict,) = ensemble(limit, measurement=measurement, lstm=3.0, gru=5.0)
    assert (verdict.status, verdict.value_ms, verdict.artifact) == (status, value, "lstm + gru")
    assert "the slowest 5 ms, together 8 ms" in verdict.reason


def test_formulas_are_computed_and_decide_nothing(measurement):
    members = [Member("lstm", (measurement(3.0),)), Member("gru", (measurement(5.0),))]
    voting, stacking = judge_ensembles(TABLES, members)
    assert (voting.status, voting.value_ms, stacking.value_ms) == ("inconclusive", 5.0, 8.0)
    assert "a formula (max of base models) and no limit" in voting.reason


def test_an_ensemble_needs_its_members_and_their_samples(measurement):
    assert judge_ensembles(TABLES, [Member("lstm", (measurement(),))]) == ()
    assert ensemble(1.0, measurement=lambda ms: measurement(ms, samples=63), lstm=1.0, gru=1.0)[0].reason == (
        "lstm has no artifact measurement at batch 1 of 64 samples here"
    )
    three = [Member(name, (measurement(),)) for name in ("lstm", "gru", "tcn")]
    named = [one for one in judge_ensembles(TABLES, three) if one.budget.model == "ensemble:neural-voting"]
    assert [one.status for one in named] == ["not measured"]  # a budget of a GPU
    assert "30 ms is the sum" in named[0].reason
