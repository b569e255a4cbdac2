"""One whole build of a small model: what it prints, what the bundle holds, and that it serves."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import tsexport
from tsexport.types import FORMATS

MEASURED = ("measurements/", "report.html")
STAGES = [
    "model and data", "export ONNX", "export TorchScript", "export OpenVINO", "parity", "INT8 candidates",
    "layers in floating point", "accuracy", "measure fp32 side by side", "measure INT8 against fp32",
    "measure batch sizes", "profile the selected artifact", "pack",
]  # fmt: skip


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- what is printed -------------------------------------------------------------------------------------------------


def test_json_is_one_document_and_nothing_else(built):
    document = json.loads(built.ran.stdout)
    assert list(document) == ["schema_version", "path", "manifest"]
    assert document["schema_version"] == 1
    assert document["path"] == str(built.path)
    assert document["manifest"] == json.loads((built.path / "manifest.json").read_text())


def test_progress_has_one_line_a_step_with_the_time_left(built):
    lines = [line for line in built.ran.stderr.splitlines() if re.match(r"\[ ?\d+/\d+\]", line)]
    assert [re.sub(r"^\[[ \d/]+\] ([^:]+):.*", r"\1", line) for line in lines] == STAGES
    assert all(re.search(r": (\d+ min \d+|[\d.]+) s, about .* left$", line) for line in lines[:-1])
    assert re.fullmatch(r"\[13/13\] pack: [\d.]+ s", lines[-1])
    assert "\r" not in built.ran.stderr
    assert "Traceback" not in built.ran.stderr


def test_the_output_says_what_weights_and_what_data_were_used(built):
    assert "weights initialised from seed 0: untrained, accuracy means nothing" in built.ran.stderr
    assert "calibration: 256 windows of the reference market series" in built.ran.stderr
    assert "evaluation: 1024 windows of the reference market series" in built.ran.stderr
    selected, threads = built.bundle.manifest.selected, built.bundle.selection.threads
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    assert f"selected {selected.artifact} on {selected.runtime}, {count}: {selected.why} (" in built.ran.stderr


# --- what the bundle holds -------------------------------------------------------------------------------------------


def test_the_tree(built):
    there = files_of(built.path)
    for name in (
        "manifest.json", "selection.json", "README.md", "report.html", "SHA256SUMS", "measurements/SHA256SUMS",
        "golden/inputs.npz", "golden/outputs.npz", "sbom.cdx.json",
    ):  # fmt: skip
        assert name in there
    assert [path.name for path in built.path.parent.iterdir()] == [built.path.name]
    selected = built.bundle.manifest.selected.artifact
    stems = {name.removeprefix("artifacts/").rpartition(".")[0] for name in there if name.startswith("artifacts/")}
    assert stems - {"calibration"} == {"onnx-fp32", "torchscript-fp32", "openvino-fp32", selected}
    assert {entry.path for entry in built.bundle.manifest.artifacts} <= set(there)


def test_sha256sums_cover_every_file_once(built):
    def named(path):
        return [line.split("  ", 1)[1] for line in path.read_text().splitlines()]

    outside = named(built.path / "SHA256SUMS")
    measured = named(built.path / "measurements" / "SHA256SUMS")
    assert len(set(outside)) == len(outside)
    assert set(outside) == {
        name for name in files_of(built.path) if not name.startswith(MEASURED) and name != "SHA256SUMS"
    }
    assert any(name.endswith("report.html") for name in measured)
    assert any(name.endswith(".json") for name in measured)


def test_the_manifest(built):
    manifest = built.bundle.manifest
    assert manifest.schema_version == 1
    assert manifest.name == "patchtst-cpu-cpu4-int8"
    assert (manifest.model.name, manifest.model.family, manifest.model.task) == (
        "patchtst-cpu",
        "transformer",
        "forecast",
    )
    assert manifest.config["width"] == 16
    assert (manifest.target.name, manifest.target.precision) == ("cpu4-int8", "int8")
    assert manifest.absent_formats == ()
    assert {entry.format for entry in manifest.artifacts} == set(FORMATS)
    for entry in manifest.artifacts:
        assert [spec.name for spec in entry.inputs] == [spec.name for spec in manifest.model.inputs]
        assert [spec.name for spec in entry.outputs] == [spec.name for spec in manifest.model.outputs]
        assert all(spec.shape[0] == "batch" for spec in (*entry.inputs, *entry.outputs))
        assert entry.provenance
    (onnx,) = (entry for entry in manifest.artifacts if entry.name == "onnx-fp32")
    assert onnx.opset == 17
    assert (manifest.budget.metric, manifest.budget.max_degradation, manifest.budget.max_output_error) == (
        "mse",
        0.05,
        0.05,
    )
    assert manifest.golden.samples == 16
    assert "untrained: accuracy means nothing" in manifest.model.caveats


def test_parity_is_stated_for_every_fp32_artifact_on_every_runtime_with_its_tolerance(built):
    manifest = built.bundle.manifest
    pairs = {(e.name, runtime) for e in manifest.artifacts if e.precision == "fp32" for runtime in e.runtimes}
    assert {(one.artifact, one.runtime) for one in manifest.parity} == pairs
    assert {"onnxruntime", "torchscript", "openvino"} <= {runtime for _, runtime in pairs}
    for pair in pairs:
        mine = [one for one in manifest.parity if (one.artifact, one.runtime) == pair]
        assert {(one.feeds, one.batch) for one in mine} == {(f, b) for f in ("random", "real") for b in (1, 3, 10)}
    for one in manifest.parity:
        for comparison in one.comparisons:
            tolerance = comparison.tolerance
            assert comparison.passed
            assert comparison.excess <= 1
            assert tolerance.name
            assert tolerance.reason
            assert 0 < tolerance.rtol < 1e-3


def test_accuracy_of_every_artifact_the_selected_one_first(built):
    manifest = built.bundle.manifest
    pairs = {(e.name, runtime) for e in manifest.artifacts for runtime in e.runtimes}
    assert {(one.artifact, one.runtime) for one in manifest.accuracy} == pairs
    first = manifest.accuracy[0]
    assert (first.artifact, first.runtime) == (manifest.selected.artifact, manifest.selected.runtime)
    for one in manifest.accuracy:
        assert one.windows == 1024
        assert one.metric == "mse"
        if manifest.artifact(one.artifact).precision == "fp32":
            assert one.output_error < 1e-4
            assert abs(one.degradation) < 1e-4
        else:
            assert one.degradation <= manifest.budget.max_degradation


def test_every_candidate_has_a_recipe_a_status_and_a_reason(built):
    manifest = built.bundle.manifest
    assert len(manifest.candidates) >= 5
    assert {candidate.runtime for candidate in manifest.candidates} == {"onnxruntime", "openvino"}
    for candidate in manifest.candidates:
        assert {"name", "tool", "activations", "weights", "reduce_range"} <= set(candidate.recipe)
        assert candidate.reason
        assert candidate.status in ("selected", "eligible", "rejected", "failed")
        if candidate.status == "failed":
            assert candidate.accuracy is None
        else:
            assert candidate.size_bytes > 0
            assert candidate.accuracy.windows == 1024
            within = candidate.accuracy.degradation <= manifest.budget.max_degradation
            assert within == (candidate.status != "rejected")
    chosen = [candidate.artifact for candidate in manifest.candidates if candidate.status == "selected"]
    precision = manifest.artifact(manifest.selected.artifact).precision
    assert chosen == ([] if precision == "fp32" else [manifest.selected.artifact])


def numbers_of(text):
    """Window numbers of "test: 3-5,9"."""
    ranges = [part.split("-") for part in text.partition(": ")[2].split(",")]
    return {number for first, *last in ranges for number in range(int(first), int((last or [first])[0]) + 1)}


def test_provenance(built):
    provenance = built.bundle.manifest.provenance
    assert provenance.checkpoint is None
    assert provenance.seed == 0
    assert {"python", "tsexport", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy"} <= set(
        provenance.versions
    )
    calibration, evaluation = provenance.calibration, provenance.evaluation
    assert calibration.window_ids.startswith("train: ")
    assert evaluation.window_ids.startswith("test: ")
    assert len(numbers_of(calibration.window_ids)) == calibration.windows == 256
    assert len(numbers_of(evaluation.window_ids)) == evaluation.windows == 1024
    assert calibration.source == evaluation.source == "the reference market series"
    assert re.fullmatch("[0-9a-f]{64}", calibration.sha256)


def test_the_files_that_are_signed_hold_no_time_path_or_latency(built):
    for name in ("manifest.json", "selection.json", "README.md"):
        text = (built.path / name).read_text()
        paths = (str(built.path.parent), str(built.cache), "/tmp/", "/home/")
        for word in (*paths, "latency_ms", "p50", "p90", "seconds"):
            assert word not in text, (name, word)
        assert not re.search(r"\d ?ms\b", text), name
        assert not re.search(r"20\d\d-\d\d-\d\d", text), name


def test_selection(built):
    bundle = built.bundle
    selection = bundle.selection
    assert (selection.artifact, selection.runtime) == (
        bundle.manifest.selected.artifact,
        bundle.manifest.selected.runtime,
    )
    assert selection.why == bundle.manifest.selected.why
    assert selection.triton_batch_sizes == (1, 3)
    pairs = {(entry.name, runtime) for entry in bundle.manifest.artifacts for runtime in entry.runtimes}
    assert {(one.artifact, one.runtime) for one in selection.order} == pairs


def test_measurements_hold_every_stage_and_both_races(built):
    record = built.measurements
    assert record["schema_version"] == 1
    stages = dict(record["stage_seconds"])
    assert list(stages) == STAGES
    assert all(seconds > 0 for seconds in stages.values())
    fp32, int8 = record["races"][:2]
    assert {entry["artifact"] for entry in fp32["entries"]} == {"onnx-fp32", "torchscript-fp32", "openvino-fp32"}
    raced = {(entry["artifact"], entry["runtime"]) for entry in int8["entries"]}
    candidates = built.bundle.manifest.candidates
    within = {(one.artifact, one.runtime) for one in candidates if one.status in ("selected", "eligible")}
    assert raced - {(fp32["entries"][0]["artifact"], fp32["entries"][0]["runtime"])} >= within
    assert {one["batch"] for one in record["measurements"]} == {1, 3}
    selected = built.bundle.manifest.selected
    assert selected.artifact in {one["artifact"] for one in record["measurements"]}
    budgets = [verdict["budget"]["model"] for verdict in record["verdicts"]]
    assert "patchtst-cpu" in budgets


class Links(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_report_stands_alone(built):
    links = Links()
    links.feed((built.path / "report.html").read_text())
    assert all(link.startswith(("#", "data:")) for link in links.found), links.found


# --- what it can do --------------------------------------------------------------------------------------------------


def test_verify(built):
    assert built.bundle.verify()


def golden(built):
    return (dict(np.load(built.path / "golden" / f"{name}.npz")) for name in ("inputs", "outputs"))


GOLDEN_ATOL = 1e-5
"""The model's answers have an RMS near 0.2; fp32 runtimes round them otherwise by less than 1e-6."""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torchscript", "tract"])
def test_load_on_a_runtime_answers_the_golden_outputs(built, runtime):
    statuses = {status.name: status.available for status in tsexport.list_runtimes()}
    if not statuses[runtime]:
        pytest.skip(f"{runtime} is not installed")
    inputs, outputs = golden(built)
    with tsexport.load(built.path, precision="fp32", runtime=runtime, threads=1) as session:
        found = session.run(inputs)
    assert set(found) == set(outputs)
    for name, expected in outputs.items():
        np.testing.assert_allclose(found[name], expected, atol=GOLDEN_ATOL, rtol=0)


def test_load_without_arguments_is_the_selected_artifact(built):
    inputs, outputs = golden(built)
    with tsexport.load(built.path) as session:
        found = session.run({name: array[:1] for name, array in inputs.items()})
    (name,) = outputs
    error = float(np.sqrt(np.mean((found[name] - outputs[name][:1]) ** 2)))
    assert error <= 0.05 * math.sqrt(float(np.mean(outputs[name] ** 2))) + 0.05


def test_golden_outputs_are_what_the_source_model_answers(built):
    from tsexport.models.sources import identify, open_source

    inputs, outputs = golden(built)
    settings = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}
    answers = open_source(identify("patchtst-cpu", settings=settings)).run(inputs)
    for name, expected in outputs.items():
        np.testing.assert_allclose(answers[name], expected, atol=1e-7, rtol=0)
