"""The suite of whole device bundles: one row as it runs, what it sees in a broken kit, what it keeps, and its text."""

import sys
from dataclasses import replace

import pytest

from tsexport.bench.suites import device_bundles
from tsexport.bench.suites.device_bundle_records import (
    SUITE,
    TARGETS,
    Answer,
    BuiltBundle,
    Case,
    Kit,
    Options,
    Refusal,
    Report,
    Row,
    target_label,
)
from tsexport.bench.suites.device_bundle_row import COMMAND, kit_problems, rewrites_for
from tsexport.bench.suites.device_bundle_text import report_text, row_line
from tsexport.bench.suites.device_bundles import all_cases, chosen_cases, main, read_report, rows_so_far, run_row
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.engines import graph_of
from tsexport.bundles.manifest import RewriteRecord
from tsexport.codec import encode
from tsexport.device.kit import write_kit
from tsexport.errors import BundleError, ConfigurationError, UsageError
from tsexport.models.registry import list_entries
from tsexport.targets import parse_target

BUNDLE = BuiltBundle(
    device="jetson-nano", tensorrt="8.2", parameters=32_352, weights="untrained, seed 0", artifact="fp16-tensorrt",
    runtime="onnxruntime", precision="fp16", graph="artifacts/fp16-tensorrt.onnx", graph_bytes=66_000, windows=769,
    output_error=2.4e-4, max_output_error=0.05, metric="mse", degradation=-1e-4, max_degradation=0.05,
    within_budget=True, accepted=True, refusals=(), rewrites=("layer-norm-as-parts: 7",), verified=True,
    kit=Kit(7, ()),
)  # fmt: skip
CASE = Case("linear", "jetson-fp16", "jetson-nano")
WHOLE = Row(CASE, "built", Answer(BUNDLE), "", 20.4, 3 << 29, "0123abcd")
REFUSED = Row(
    Case("unet", "a100-bf16", "host"), "refused",
    Answer(refusal=Refusal("AccuracyError", "no bf16 candidate: /down/Conv", "Build for a100-fp16.")),
    "", 31.0, 1 << 30, "0123abcd",
)  # fmt: skip
ENDED = Row(Case("tft", "t4-fp16", "host"), "ended", Answer(), "ended by signal 9", 5.0, 1 << 30, "0123abcd")


@pytest.fixture
def report(machine) -> Report:
    return Report(SUITE, machine, Options(), all_cases(), ())


def lacking(**changes) -> Row:
    """The whole row with a bundle that lacks something."""
    return replace(WHOLE, answer=Answer(replace(BUNDLE, **changes)))


def test_every_registered_model_has_a_row_for_each_target():
    assert {case.model for case in all_cases()} == {entry.name for entry in list_entries()}
    assert len(set(all_cases())) == len(list_entries()) * len(TARGETS)
    for target, device in TARGETS:
        assert parse_target(target, device).tensorrt


def test_rows_are_chosen_by_name():
    assert chosen_cases(None, None) == all_cases()
    found = chosen_cases("tcn,linear", "jetson-int8,jetson-fp16-xavier-nx-jetpack-5.1")
    assert [(case.model, target_label(case.target, case.device)) for case in found] == [
        ("tcn", "jetson-int8"), ("tcn", "jetson-fp16-xavier-nx-jetpack-5.1"),
        ("linear", "jetson-int8"), ("linear", "jetson-fp16-xavier-nx-jetpack-5.1"),
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="did you mean 'jetson-int8'"):
        chosen_cases(None, "jetson-int9")
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        chosen_cases("linera", None)


@pytest.mark.slow
def test_one_row_as_it_runs(tmp_path, monkeypatch, capsys):
    """From the command to the results: built, judged, deleted, kept, and not built again."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    rows, output = tmp_path / "rows", tmp_path / "results" / "kept.json"
    rows.mkdir()
    given = ["--models=linear", "--targets=jetson-fp16-jetson-nano", f"--folder={rows}", f"--output={output}"]
    assert main(given) == 0
    (row,) = read_report(output).rows
    assert (row.case, row.outcome, row.problems) == (CASE, "built", ())
    assert row.seconds > 0
    assert row.peak_bytes > 2**27
    bundle = row.answer.bundle
    assert (bundle.device, bundle.tensorrt, bundle.precision) == ("jetson-nano", "8.2", "fp16")
    assert 0 < bundle.output_error < 1e-3, "fp16 rounds by 5e-4"
    assert bundle.parameters == 32_352, "the default configuration"
    assert not list(rows.iterdir()), "bundles are deleted"
    assert output.with_suffix(".md").read_text() == capsys.readouterr().out.removesuffix("\n")
    monkeypatch.setattr(device_bundles, "run_row", None)
    assert main(given) == 0


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("import sys; print('first\\nlast', file=sys.stderr); sys.exit(3)", "ended with exit code 3: last"),
    ],
)
def test_a_process_that_dies_is_a_row(tmp_path, program, ending):
    row = run_row(CASE, tmp_path, [sys.executable, "-c", program])
    assert (row.outcome, row.ending, row.answer, row.problems) == ("ended", ending, Answer(), (ending,))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_tsexport_refuses_is_a_row(tmp_path):
    row = run_row(Case("linear", "jetson-fp16", "toaster"), tmp_path, COMMAND)
    assert row.outcome == "refused"
    assert row.answer.refusal.kind == "UsageError"
    assert "toaster" in row.problems[0]


def test_rows_are_kept_and_built_again_only_where_that_is_asked_for(tmp_path, machine, report, monkeypatch):
    output, built = tmp_path / "kept.json", []
    cases = (CASE, REFUSED.case, ENDED.case)
    outcomes = {row.case: row for row in (WHOLE, REFUSED, ENDED)}
    monkeypatch.setattr(device_bundles, "run_row", lambda case, folder: built.append(case) or outcomes[case])

    def run(*, anew=False, until_s=float("inf")):
        built.clear()
        wanted = device_bundles.Run(cases, anew, until_s, None)
        return device_bundles.run(wanted, rows_so_far(output, machine), output)

    assert run(until_s=0.0).rows == ()
    assert not output.exists(), "nothing was run"
    found = run()
    assert built == list(cases)
    assert set(found.rows) == set(outcomes.values())
    assert read_report(output) == found, "what was written is what was found"
    run()
    assert built == [ENDED.case], "it had no answer"
    run(anew=True)
    assert built == list(cases)


def test_rows_of_another_machine_are_not_mixed_in(tmp_path, machine, four_cores, report):
    path = tmp_path / "kept.json"
    path.write_text(encode(report.with_row(WHOLE)))
    assert rows_so_far(path, machine).rows == (WHOLE,)
    with pytest.raises(UsageError, match="built on another machine") as caught:
        rows_so_far(path, four_cores)
    assert "name another --output" in caught.value.next_step
    path.write_text('{"schema_version": 0}')
    with pytest.raises(BundleError, match="schema_version 0") as caught:
        read_report(path)
    assert "delete the file" in caught.value.next_step


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"accepted": False, "refusals": ("/norm: LayerNormalization",)}, "check refuses /norm: LayerNormalization"),
        ({"precision": "fp32"}, "the graph is of precision fp32"),
        ({"within_budget": False}, "fp16-tensorrt misses the accuracy budget"),
        ({"verified": False}, "the bundle does not verify"),
        ({"kit": Kit(6, ("device/kit.sh is not there",))}, "device/kit.sh is not there"),
    ],
)
def test_what_a_bundle_lacks_is_said_and_is_the_exit_code(tmp_path, report, monkeypatch, changes, problem):
    row = lacking(**changes)
    assert row.lacks == row.problems == (problem,)
    text = report_text(report.with_row(row))
    assert "1 built and not whole" in text
    assert f"- linear for jetson-fp16 on jetson-nano: {problem}\n" in text
    monkeypatch.setattr(device_bundles, "run_row", lambda case, folder: row)
    given = ["--models=linear", "--targets=jetson-fp16-jetson-nano", f"--output={tmp_path / 'kept.json'}"]
    assert main(given) == 1


def test_the_text_has_every_row(report):
    text = report_text(report.with_row(ENDED).with_row(REFUSED).with_row(WHOLE))
    total = len(all_cases())
    assert f"of {total} rows 1 whole, 1 refused, 1 ended without an answer, {total - 3} not run" in text
    lines = text.splitlines()
    (overview,) = (line for line in lines if line.startswith("| linear") and "not run" in line)
    assert overview.count("not run") == len(TARGETS) - 1
    assert "0.024 %" in overview
    (row,) = (line for line in lines if line.startswith("| linear") and "layer-norm-as-parts: 7" in line)
    for cell in ("8.2", "untrained, seed 0", "0.024 % over 769 windows", "mse 0.01 % better", "held, metric 5 %",
                 "takes it", "complete, 7 files", "66 kB", "20", "1.5"):  # fmt: skip
        assert f" {cell} |" in row
    assert (
        "- unet for a100-bf16: no bf16 candidate: /down/Conv (AccuracyError; next step: Build for a100-fp16.)" in text
    )
    assert "- tft for t4-fp16: ended by signal 9" in text
    assert "- gru: every target" in text
    assert "; code 0123abcd." in text
    assert "2 states of the code: 0123abcd, 4567" in report_text(
        report.with_row(WHOLE).with_row(replace(ENDED, code_digest="4567"))
    )


def test_without_labels_the_budget_is_the_error_s(report):
    text = report_text(report.with_row(lacking(metric=None, degradation=None)))
    assert "held, error 5 %" in text


def test_rows_stand_in_the_order_of_the_cases(report):
    assert report.with_row(ENDED).with_row(WHOLE).rows == (WHOLE, ENDED)
    assert report.with_row(WHOLE).with_row(replace(WHOLE, seconds=1.0)).rows[0].seconds == 1.0
    assert row_line(WHOLE) == "linear for jetson-fp16 on jetson-nano: built, 20 s, peak 1.5 GiB"
    assert row_line(ENDED).endswith("; ended by signal 9")


@pytest.fixture
def kit_bundle(bundle_folder):
    """The small bundle of these tests with a kit for jetson-int8, and the graph that engines are built of."""
    manifest = replace(open_bundle(bundle_folder).manifest, target=parse_target("jetson-int8"))
    write_kit(bundle_folder, manifest, (1, 8), "artifacts/calibration.cache")
    return bundle_folder, graph_of(manifest)


def test_a_whole_kit_has_no_problem(kit_bundle):
    root, graph = kit_bundle
    assert kit_problems(root, graph, (1, 8)) == ()
    assert kit_problems(root, graph, (8, 1)) == ("KIT_TUNED_BATCH is ['1'], not ['8']",)
    assert kit_problems(root, graph, (1, 4)) == ("KIT_BATCHES is ['1', '8'], not ['1', '4']",)
    renamed = replace(graph, inputs=(replace(graph.inputs[0], name="other"),))
    assert "KIT_INPUTS are" in kit_problems(root, renamed, (1, 8))[0]


def test_what_is_wrong_with_a_kit_is_seen(kit_bundle):
    root, graph = kit_bundle
    kit = root / "device"
    listed = (kit / "graph.sha256").read_text()
    (kit / "graph.sha256").write_text("")
    assert kit_problems(root, graph, (1, 8)) == (f"device/graph.sha256 does not list {graph.path}",)
    (kit / "graph.sha256").write_text("0" * 64 + listed[64:])
    assert kit_problems(root, graph, (1, 8)) == (f"{graph.path} does not have the digest of device/graph.sha256",)
    (kit / "graph.sha256").write_text(listed)
    with (kit / "measure.sh").open("a") as script:
        script.write("if true; then\n")
    assert "device/measure.sh: " in kit_problems(root, graph, (1, 8))[0]
    (kit / "measure.sh").unlink()
    assert kit_problems(root, graph, (1, 8)) == ("device/measure.sh is not there",)


def test_the_rewrites_are_those_that_the_version_needed_and_that_were_applied(bundle_folder):
    needed = "TensorRT 8.2 needs it"
    records = (
        RewriteRecord("onnx-fp32", "layer-norm-as-parts", 7, 10, 20, 1e-7, reason=needed),
        RewriteRecord("onnx-fp32", "other", 1, 10, 20, 1e-7, applied=False, reason=needed),
        RewriteRecord("onnx-fp32", "for-speed", 2, 10, 8, 1e-7, reason="faster"),
    )
    manifest = replace(open_bundle(bundle_folder).manifest, rewrites=records)
    assert rewrites_for(manifest, "8.2") == ("layer-norm-as-parts: 7",)
    assert rewrites_for(manifest, "8.5") == ()
