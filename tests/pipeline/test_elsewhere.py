"""Builds for targets that are not this machine: simulated, never timed, the smallest error within the budget."""

import hashlib

import numpy as np
import pytest

import tsexport
from tsexport.bundles.measured import read_measurements
from tsexport.errors import AccuracyError, UsageError
from tsexport.quantize.openvino_bf16 import STANDS_IN
from tsexport.quantize.recipes import recipes_for
from tsexport.targets import host_cpu, parse_target
from tsexport.wording import percent_text

SMALL = {"context_length": 32, "horizon": 8, "channels": 2}
ELSEWHERE = "avx2" if host_cpu().instruction_set != "avx2" else "avx512-vnni"
"""An instruction set of x86 that this machine is not of."""
NOT_MEASURED = "latency not measured"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that builds a small dlinear for a target; the cache is this file's own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    generator = np.random.default_rng(0)
    np.savez(folder / "series.npz", series=generator.standard_normal((400, 32, 2)).astype(np.float32))

    def build(target, *, output=None, **options):
        given = {"calibration": folder / "series.npz", "batch": [1], "seconds": 0.1, **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
            return tsexport.build("dlinear", target, set=SMALL, output=output or folder / "dist", force=True, **given)

    return build


@pytest.fixture(scope="module")
def bundle_for(make):
    """Return a function that gives a target's bundle, built once."""
    made = {}

    def get(target, device=None):
        if (target, device) not in made:
            made[target, device] = make(target, device=device)
        return made[target, device]

    return get


TARGETS = [("cpu4-int8", ELSEWHERE), ("cpu4-int8", "arm64"), ("jetson-int8", None), ("t4-int8", None)]
IDS = [f"{target} {device or ''}".strip() for target, device in TARGETS]


@pytest.mark.parametrize(("target", "device"), TARGETS, ids=IDS)
def test_the_smallest_error_is_selected_of_the_targets_own_recipes(bundle_for, target, device):
    manifest = bundle_for(target, device).manifest
    assert not manifest.target.here
    expected = recipes_for(parse_target(target, device or "host"), host_cpu())
    assert {one.recipe["name"] for one in manifest.candidates} == {recipe.name for recipe in expected}
    within = [one for one in manifest.candidates if one.status in ("selected", "eligible")]
    assert len(within) > 1
    (selected,) = (one for one in within if one.status == "selected")
    assert selected.accuracy.output_error == min(one.accuracy.output_error for one in within)
    assert (selected.artifact, selected.runtime) == (manifest.selected.artifact, manifest.selected.runtime)
    assert 0 < selected.accuracy.output_error <= manifest.budget.max_output_error
    assert manifest.artifact(selected.artifact).precision == "int8"


def test_what_saturates_is_not_tried_for_a_cpu_without_vnni(bundle_for):
    if host_cpu().instruction_set == "avx2":
        pytest.skip("this machine is the one without VNNI")
    manifest = bundle_for("cpu4-int8", "avx2").manifest
    assert all(one.recipe["weights"] == "u8" or one.recipe["reduce_range"] for one in manifest.candidates)


@pytest.mark.parametrize(("target", "device"), TARGETS, ids=IDS)
def test_nothing_is_timed_and_the_bundle_says_so(bundle_for, target, device):
    bundle = bundle_for(target, device)
    (record,) = read_measurements(bundle)
    assert (record.measurements, record.races) == ((), ())
    assert not [step for step, _ in record.stage_seconds if "measure" in step]
    assert {verdict.status for verdict in record.verdicts} <= {"not measured", "not possible"}
    assert NOT_MEASURED in bundle.manifest.selected.why
    assert NOT_MEASURED in bundle.selection.why
    assert bundle.selection.rewrites == ()  # they are chosen by timing
    name = bundle.manifest.target.device_name
    assert any(f"latency was not measured, since the build ran on no {name}" in one for one in bundle.manifest.caveats)
    assert f"{NOT_MEASURED}: the build ran on no {name}" in (bundle.path / "README.md").read_text()
    report = (bundle.path / "report.html").read_text()
    assert f'<div class="figure">not measured</div><div class="how">the build ran on no {name}</div>' in report
    assert "<h3>Measured on" not in report


def test_the_accuracy_of_what_is_selected_is_shown(bundle_for):
    """In the manifest, in the bundle's README and on the report's card."""
    bundle = bundle_for(*TARGETS[0])
    (selected,) = (one for one in bundle.manifest.candidates if one.status == "selected")
    assert bundle.manifest.accuracy[0] == selected.accuracy
    error = percent_text(selected.accuracy.output_error)
    assert (
        f"| {selected.artifact} | {selected.runtime} | {selected.accuracy.windows} | {error} |"
        in (bundle.path / "README.md").read_text()
    )
    report = (bundle.path / "report.html").read_text()
    assert f'<div class="name">accuracy</div>\n<div class="figure">{error} output error</div>' in report


@pytest.mark.parametrize(("target", "device"), TARGETS, ids=IDS)
def test_gpus_and_boards_get_a_device_kit(bundle_for, target, device):
    bundle = bundle_for(target, device)
    readme = (bundle.path / "README.md").read_text()
    if target.startswith("cpu4"):
        assert not (bundle.path / "device").exists()
        assert "device/" not in readme
        return
    assert "`device/README.md`" in readme
    entry = bundle.manifest.artifact(bundle.manifest.selected.artifact)
    settings = (bundle.path / "device" / "settings.sh").read_text()
    assert f"KIT_GRAPH={entry.path}\n" in settings
    assert "KIT_PRECISION=int8\n" in settings
    assert "KIT_INPUTS=(series:@batchx32x2)\n" in settings
    assert f"{entry.files[0].sha256}  {entry.path}\n" in (bundle.path / "device" / "graph.sha256").read_text()
    cache = bundle.path / "artifacts" / "calibration.cache"
    assert cache.read_bytes() == (bundle.path / "device" / "calibration.cache").read_bytes()


@pytest.mark.parametrize(("target", "device"), TARGETS, ids=IDS)
def test_it_verifies_and_runs_here(bundle_for, target, device):
    bundle = bundle_for(target, device)
    if device == "arm64" and not host_cpu().vnni:
        pytest.skip("full-range S8 weights saturate on this machine, and the golden outputs are rightly missed")
    report = bundle.verify()
    assert report.passed
    checked = {(one.artifact, one.runtime) for one in report.checks if one.status == "passed"}
    assert (bundle.manifest.selected.artifact, bundle.manifest.selected.runtime) in checked
    with tsexport.load(bundle) as session:
        assert next(iter(session.run({"series": np.ones((5, 32, 2), np.float32)}).values())).shape == (5, 8, 2)


@pytest.mark.parametrize(("target", "device"), TARGETS[1:3], ids=IDS[1:3])
def test_a_selection_repeats_to_the_same_bytes(make, bundle_for, tmp_path, target, device):
    def digests(bundle):
        names = sorted(path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file())
        return {
            name: hashlib.sha256((bundle.path / name).read_bytes()).hexdigest()
            for name in names
            if not name.startswith("measurements/") and name != "report.html"
        }

    first = bundle_for(target, device)
    chosen = first.path / "selection.json"
    assert digests(make(target, output=tmp_path / "again", device=device, selection=chosen)) == digests(first)


@pytest.mark.parametrize(("target", "device"), [("cpu4-int8", ELSEWHERE), ("jetson-int8", None)])
def test_no_candidate_within_the_budget_is_exit_3(make, tmp_path, target, device):
    with pytest.raises(AccuracyError) as caught:
        make(target, output=tmp_path, device=device, max_output_error=0.0)
    assert caught.value.exit_code == 3
    message = caught.value.message
    assert message.startswith(f"no int8 candidate for {target} holds the accuracy budget: ")
    assert "allowed is 0.00%" in message
    assert "--max-output-error" in caught.value.next_step
    assert not list(tmp_path.iterdir())


def test_the_smallest_is_selected_where_size_is_asked_for(make, tmp_path):
    manifest = make("cpu4-int8", device=ELSEWHERE, objective="size", output=tmp_path).manifest
    within = [one for one in manifest.candidates if one.status in ("selected", "eligible")]
    (selected,) = (one for one in within if one.status == "selected")
    assert selected.size_bytes == min(one.size_bytes for one in within)
    assert manifest.selected.why.startswith("the smallest of the int8 artifacts within the accuracy budget")


def test_a_runtime_limits_the_selection(make, tmp_path):
    manifest = make("cpu4-int8", output=tmp_path, device=ELSEWHERE, runtime="openvino").manifest
    assert manifest.selected.runtime == "openvino"
    assert manifest.artifact(manifest.selected.artifact).precision == "int8"


def test_a_runtime_that_no_artifact_of_the_target_runs_on(make, tmp_path):
    with pytest.raises(UsageError, match="no artifact runs on openvino, the only runtime that --runtime allows"):
        make("a100-fp32", output=tmp_path, runtime="openvino")


# --- GPUs and boards -------------------------------------------------------------------------------------------------


def test_an_fp32_gpu_target_selects_onnx(bundle_for):
    manifest = bundle_for("a100-fp32").manifest
    assert {entry.name for entry in manifest.artifacts} == {"onnx-fp32", "torchscript-fp32"}
    assert [(one.format, one.reason) for one in manifest.absent_formats] == [("openvino", "a100-fp32 runs no openvino")]
    assert (manifest.selected.artifact, manifest.selected.runtime) == ("onnx-fp32", "onnxruntime")
    assert NOT_MEASURED in manifest.selected.why
    assert manifest.candidates == ()


def test_tensorrts_int8_is_computed_as_it_is_written_wherever_it_is_loaded(bundle_for):
    bundle = bundle_for("jetson-int8")
    entry = bundle.manifest.artifact(bundle.manifest.selected.artifact)
    assert ("session.disable_quant_qdq", "1") in entry.options
    assert entry.format == "onnx"


@pytest.mark.parametrize(
    ("target", "device", "precision"),
    [("a100-bf16", None, "bf16"), ("t4-fp16", None, "fp16"), ("jetson-fp16", "jetson-nano", "fp16")],
)
def test_narrow_floats_for_a_gpu_are_verified_without_one(bundle_for, target, device, precision):
    bundle = bundle_for(target, device)
    selected = bundle.manifest.selected
    assert bundle.manifest.artifact(selected.artifact).precision == precision
    assert bundle.verify().passed
    with tsexport.load(bundle) as session:
        assert next(iter(session.run({"series": np.ones((5, 32, 2), np.float32)}).values())).shape == (5, 8, 2)


@pytest.mark.slow
def test_a_benchmark_here_times_no_artifact_of_a_gpu_but_fp32(bundle_for):
    result = tsexport.benchmark(bundle_for("t4-fp16"), batch=[1])
    assert {one.precision for one in result.record.measurements} == {"fp32"}


def test_the_caveat_of_the_original_nano_stands_in_its_bundle(bundle_for):
    manifest = bundle_for("jetson-fp16", "jetson-nano").manifest
    assert any("Jetson Nano, INT8: 200 ms" in caveat for caveat in manifest.caveats)
    assert manifest.target.tensorrt == "8.2"


# --- bf16 on this machine --------------------------------------------------------------------------------------------


def test_bf16_of_another_cpu_is_judged_by_a_simulation_that_is_not_exact(bundle_for):
    if host_cpu().instruction_set == "amx":
        pytest.skip("this machine is the one with AMX")
    bundle = bundle_for("cpu4-bf16", "amx")
    (selected,) = bundle.manifest.candidates
    assert (selected.status, selected.artifact, selected.runtime) == ("selected", "openvino-bf16", "openvino")
    assert 0 < selected.accuracy.output_error < 0.02
    assert STANDS_IN.removeprefix("caveat: ") in bundle.manifest.caveats
    assert any("accuracy is that of a simulation, without" in one for one in bundle.manifest.caveats)
    assert not list(bundle.path.glob("artifacts/*simulated*"))
    assert bundle.verify().passed


@pytest.mark.slow
def test_bf16_on_a_cpu_that_has_it_ships_only_where_it_is_faster(make, tmp_path):
    if not host_cpu().bf16:
        pytest.skip(f"{host_cpu().model} has no bf16")
    bundle = make("cpu4-bf16", output=tmp_path)
    manifest = bundle.manifest
    assert manifest.target.here
    assert {one.precision for one in manifest.candidates} == {"bf16"}
    assert {one.status for one in manifest.candidates} <= {"selected", "eligible", "rejected", "failed"}
    precision = manifest.artifact(manifest.selected.artifact).precision
    assert precision in ("fp32", "bf16")
    (record,) = read_measurements(bundle)
    assert record.measurements
    assert (precision == "bf16") == any(one.status == "selected" for one in manifest.candidates)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "device"), TARGETS, ids=IDS)
def test_the_reference_model_elsewhere(fresh_cache, tmp_path, target, device):
    bundle = tsexport.build("patchtst-cpu", target, device=device, output=tmp_path)
    (selected,) = (one for one in bundle.manifest.candidates if one.status == "selected")
    assert selected.accuracy.degradation <= 0.05
    assert selected.accuracy.output_error < 0.03
    assert bundle.verify().passed
    for verdict in read_measurements(bundle)[0].verdicts:
        assert verdict.status in ("not measured", "not possible")
