"""`tsexport compare`: verdicts of real comparisons, exit codes, and what cannot be compared."""

import json
import re
import shutil
from dataclasses import replace

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.entries import artifact_entry, bundle_artifact
from tsexport.bundles.manifest import manifest_text
from tsexport.errors import UsageError
from tsexport.measurements.comparing import conclude, parse_threshold, why_not_here
from tsexport.targets import host_cpu, parse_target
from tsexport.types import TensorSpec, files_sha256

BRIEF = ("--max-seconds", "1")
"""One pair of processes takes longer, and no further one fits."""


def compare(*arguments):
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)], prog_name="tsexport")


def changed(bundle_folder, to, **changes):
    """Copy a bundle with another manifest; every digest holds."""
    copy = shutil.copytree(bundle_folder, to)
    manifest = replace(open_bundle(copy).manifest, **changes)
    (copy / "manifest.json").write_text(manifest_text(manifest))
    seal(copy)
    return copy


@pytest.fixture
def here(bundle_folder, tmp_path):
    """The example bundle, for this machine's CPU."""
    return changed(bundle_folder, tmp_path / "here" / "tiny", target=parse_target("cpu4-int8"))


@pytest.fixture
def slow_copy(here, tmp_path):
    """A copy that takes many times as long: its selected artifact has 300 more nodes that add nothing."""
    copy = shutil.copytree(here, tmp_path / "slow" / "tiny")
    steps = "\n".join(f"h{i + 1} = MatMul(h{i}, one)" for i in range(300))
    ones = ", ".join("1" if i == j else "0" for i in range(4) for j in range(4))
    weight = ", ".join("0.5" for _ in range(12))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        slow (float[batch, 4] x) => (float[batch, 3] y)
        <float[4, 4] one = {{{ones}}}, float[4, 3] w = {{{weight}}}>
        {{ h0 = MatMul(x, one)\n{steps}\n y = MatMul(h300, w) }}""")
    path = copy / "artifacts" / "tiny-int8.onnx"
    onnx.save(model, path)
    manifest = open_bundle(copy).manifest
    entries = tuple(
        artifact_entry(
            replace(bundle_artifact(one, copy), sha256=files_sha256((copy / one.path,))), copy, one.golden_tolerance
        )
        for one in manifest.artifacts
    )
    (copy / "manifest.json").write_text(manifest_text(replace(manifest, artifacts=entries)))
    seal(copy)
    return copy


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_slower_bundle_is_a_regression_and_the_faster_one_is_none(here, slow_copy):
    result = compare(here, slow_copy, "--max-seconds", 300)
    assert result.exit_code == 4, result.stdout
    assert "regression: slower by" in result.stdout
    assert "second" in result.stdout
    back = tsexport.compare(slow_copy, here, max_seconds=300)
    assert (back.verdict, back.exit_code, back.confirmed, len(back.runs)) == ("improved", 0, False, 1)
    assert back.ratio.high < 1


@pytest.mark.slow
def test_two_copies_are_never_red(here, tmp_path):
    copy = shutil.copytree(here, tmp_path / "copy")
    result = compare(here, copy, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code in (0, 6)
    assert document["verdict"] in ("unchanged", "inconclusive")
    assert document["processes"] >= 5
    assert document["ratio"]["low"] <= 1.05


def test_what_is_not_decided_in_time_is_inconclusive(here, tmp_path):
    result = compare(here, here, *BRIEF, "--summary", tmp_path / "summary.md")
    assert re.search(r"no bound\] +n/a +n/a +n/a +inconclusive", result.stdout), result.stdout
    assert "noise floor n/a" in (tmp_path / "summary.md").read_text()
    assert result.exit_code == 6, result.stdout
    assert "inconclusive: the time was up after 1 of 5 pairs of processes" in result.stdout
    assert "1 thread on CPU" in result.stdout or "not bound to CPUs" in result.stdout
    assert "noise: " in result.stdout


def test_json_is_one_document(here):
    result = compare(here, here, *BRIEF, "--json", "--threshold", "0.1", "--batch", "2")
    document = json.loads(result.stdout)
    assert (document["schema_version"], document["verdict"]) == (1, "inconclusive")
    assert (document["threshold"], document["batch"], document["threads"]) == (0.1, 2, 1)
    assert document["base"]["artifact"] == "int8-onnx"
    assert len(document["runs"]) == 1
    assert document["noise"]["idle_loops"] > 0


def test_quiet_prints_no_progress(here):
    assert compare(here, here, *BRIEF).stderr.count("pair 1") == 1
    result = CliRunner().invoke(cli.main, ["--quiet", "compare", str(here), str(here), *BRIEF])
    assert result.stderr == ""


def test_a_red_run_alone_is_not_red(here):
    """What two runs say together."""
    run = tsexport.compare(here, here, max_seconds=1).runs[0]
    red, calm = replace(run, verdict="regression", reason="slower"), replace(run, verdict="unchanged", reason="within")
    assert conclude((calm,)) == ("unchanged", "within")
    assert conclude((red, red))[0] == "regression"
    verdict, reason = conclude((red, calm))
    assert verdict == "inconclusive"
    assert "did not confirm it: within" in reason


# --- what cannot be compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "5"], "threshold is 5; allowed are changes above 0 and below 100 %, written 5% or 0.05"),
        (["--threshold", "0%"], "threshold is 0%; allowed are changes above 0"),
        (["--threshold", "much"], "threshold is 'much'; allowed are changes above 0"),
        (["--threads", "0"], "threads and batch are whole numbers from 1 on, seed from 0 on; given 0, 1 and 0"),
        (["--batch", "0"], "given 1, 0 and 0"),
        (["--seed", "-1"], "given 1, 1 and -1"),
        (["--max-seconds", "0"], "max-seconds is 0; allowed are numbers above 0"),
        (["--max-seconds", "nan"], "max-seconds is nan; allowed are numbers above 0"),
    ],
)
def test_values_that_are_not_allowed(here, arguments, message):
    result = compare(here, here, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--junit", "--summary"])
def test_what_cannot_be_written_is_not_measured(here, tmp_path, option):
    (tmp_path / "file").write_text("")
    result = compare(here, here, option, tmp_path / "file" / "below")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option} {tmp_path}/file/below cannot be written: File exists\nname another file" in result.stderr
    assert "pair" not in result.stderr


def test_the_verdict_is_printed_where_the_step_summary_cannot_be_written(here, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    result = compare(here, here, *BRIEF)
    assert result.exit_code == 2
    assert "inconclusive: the time was up after 1 of 5 pairs" in result.stdout
    assert f"$GITHUB_STEP_SUMMARY is {tmp_path}, which cannot be written" in result.stderr


@pytest.mark.parametrize("given", ["5%", "5 %", "0.05", " 5.0%", 0.05])
def test_a_threshold_may_be_written_in_several_ways(given):
    assert parse_threshold(given) == pytest.approx(0.05)


def test_no_threshold_is_not_a_number():
    with pytest.raises(UsageError, match="threshold is nan"):
        parse_threshold("nan")


def test_more_threads_than_cores(here, monkeypatch):
    monkeypatch.setattr("tsexport.measurements.comparing.cores_here", lambda: 8)
    too_many = compare(here, here, "--threads", "5")
    assert too_many.exit_code == 2
    assert "threads is 5; cpu4-int8 has 4 cores" in too_many.stderr
    monkeypatch.setattr("tsexport.measurements.comparing.cores_here", lambda: 2)
    too_few = compare(here, here, "--threads", "3")
    assert too_few.exit_code == 2
    assert "threads is 3; this process may use 2 cores" in too_few.stderr
    assert "use --threads 2 or fewer" in too_few.stderr


def test_bundles_of_two_models(here, tmp_path):
    model = open_bundle(here).manifest.model
    other = changed(here, tmp_path / "other", model=replace(model, name="tall"))
    result = compare(here, other)
    assert result.exit_code == 2
    assert "tiny and other cannot be compared: they have model tiny and tall" in result.stderr
    assert "compare two bundles of one model" in result.stderr


def test_bundles_with_other_inputs(here, tmp_path):
    manifest = open_bundle(here).manifest
    wide = TensorSpec("x", "float32", ("batch", 5))
    entries = tuple(replace(entry, inputs=(wide,)) for entry in manifest.artifacts)
    other = changed(here, tmp_path / "wide", artifacts=entries, model=replace(manifest.model, inputs=(wide,)))
    result = compare(here, other)
    assert result.exit_code == 2
    assert "inputs x float32[batch, 4] and x float32[batch, 5]" in result.stderr
    assert "outputs" not in result.stderr


def test_a_bundle_for_a_gpu(here, tmp_path):
    other = changed(here, tmp_path / "jetson", target=parse_target("jetson-int8", "orin-nano"))
    for pair in ((here, other), (other, here)):
        result = compare(*pair)
        assert result.exit_code == 6
        assert "would run here in simulation only, which says nothing about its latency" in result.stderr
        assert "compare on a machine of the target's kind" in result.stderr


@pytest.mark.parametrize(
    ("here", "target", "why"),
    [
        ("avx2", "avx2", ""),
        ("avx512-vnni", "avx2", ""),
        ("avx2", "avx512-vnni", "and this CPU has avx2 only"),
        ("arm64", "avx2", "and this CPU is arm64"),
        ("arm64", "arm64", ""),
        ("avx2", "arm64", "and this CPU is avx2"),
    ],
)
def test_which_cpus_run_what(monkeypatch, here, target, why):
    cpu = replace(host_cpu(), instruction_set=here)
    wanted = replace(parse_target("cpu4-int8"), instruction_set=target)
    monkeypatch.setattr("tsexport.measurements.comparing.host_cpu", lambda: cpu)
    assert why_not_here(wanted) == why


def test_a_runtime_that_is_not_installed(here, monkeypatch):
    statuses = tsexport.list_runtimes()
    missing = tuple(
        replace(status, available=False, reason="not installed") if status.name == "onnxruntime" else status
        for status in statuses
    )
    monkeypatch.setattr("tsexport.measurements.comparing.list_statuses", lambda: missing)
    result = compare(here, here)
    assert result.exit_code == 6
    assert "int8-onnx of tiny runs on onnxruntime, which is not usable here: not installed" in result.stderr
    assert "pip install" in result.stderr


def test_a_runtime_that_nobody_knows(here, monkeypatch):
    monkeypatch.setattr("tsexport.measurements.comparing.list_statuses", lambda: ())
    result = compare(here, here)
    assert result.exit_code == 6
    assert "see `tsexport runtimes`" in result.stderr


def test_a_damaged_bundle_and_none_at_all(here, tmp_path):
    copy = shutil.copytree(here, tmp_path / "damaged")
    with (copy / "artifacts" / "tiny-fp32.onnx").open("ab") as file:
        file.write(b"tampered")
    assert "tiny-fp32.onnx" in compare(here, copy).stderr
    assert compare(here, copy).exit_code == 2
    assert "there is no bundle" in compare(tmp_path / "nothing", here).stderr
    assert compare(here).exit_code == 2
