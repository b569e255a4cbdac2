"""The device kit: complete, the same bytes every time, and the right flags for every TensorRT."""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrow_graphs import LAYER_NORM, X, graph, narrowed

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import check_sums
from tsexport.bundles.manifest import SelectedArtifact
from tsexport.device.kit import (
    SCRIPTS,
    _settings,
    fp32_layers,
    frozen_batch,
    graph_of,
    tensorrt_range,
    workspace_mib,
    write_kit,
)
from tsexport.errors import ExportError
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.targets import parse_target
from tsexport.types import TensorSpec

CACHE = "TRT-100300-EntropyCalibration2\nx: 3c010a14\nh: 3d010a14\n"


def flags(folder, log="build.log"):
    """Return the flags of a run of trtexec, without the paths."""
    words = shlex.split((folder / f"{log}.command").read_text())
    return [re.sub(r"=/.*/", "=", word) for word in words if word.startswith("--")]


def test_it_stands_in_a_gpus_bundle_and_in_no_cpus(device_bundle, bundle_folder):
    root = device_bundle()
    assert {path.name for path in (root / "device").iterdir()} == {*SCRIPTS, "settings.sh", "graph.sha256", "README.md"}
    check_sums(root)
    assert graph_of(open_bundle(bundle_folder).manifest) is None
    assert not (bundle_folder / "device").exists()
    modes = {path.name: os.access(path, os.X_OK) for path in (root / "device").glob("*.sh")}
    assert modes == {"build_engine.sh": True, "measure.sh": True, "kit.sh": False, "settings.sh": False}


def test_the_graph_is_the_onnx_file_of_the_selected_precision(torchscript_bundle):
    manifest = replace(open_bundle(torchscript_bundle).manifest, target=parse_target("a100-fp32"))
    selected = replace(manifest, selected=SelectedArtifact("fp32-torchscript", "torchscript", "the fastest"))
    assert graph_of(selected) == manifest.artifact("fp32-onnx")
    assert graph_of(manifest) == manifest.artifact("int8-onnx")
    alone = replace(selected, artifacts=(manifest.artifact("fp32-torchscript"),))
    assert graph_of(alone) is None
    root = torchscript_bundle
    write_kit(root, alone, (1,), "artifacts/calibration.cache")
    assert not (root / "device").exists()


def test_the_same_bundle_has_the_same_kit(device_bundle):
    first, second = device_bundle(name="one"), device_bundle(name="two")
    for path in (first / "device").iterdir():
        other = (second / "device" / path.name).read_text()
        assert path.read_text().replace("one", "two") == other.replace("one", "two")


@pytest.mark.parametrize("script", [*SCRIPTS, "settings.sh"])
def test_scripts_are_well_formed(device_bundle, script):
    path = device_bundle() / "device" / script
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", path], check=True, cwd=path.parent)


FLAGS = {
    ("8.2.1", "fp32"): ["--workspace=4096", "--buildOnly", "--noTF32"],
    ("8.2.1", "fp16"): ["--workspace=4096", "--buildOnly", "--fp16"],
    ("8.2.1", "int8"): ["--workspace=4096", "--buildOnly", "--int8"],
    ("8.4.1", "fp32"): ["--memPoolSize=workspace:4096", "--buildOnly", "--noTF32"],
    ("8.4.1", "int8"): ["--memPoolSize=workspace:4096", "--buildOnly", "--int8"],
    ("8.5.2", "fp16"): ["--memPoolSize=workspace:4096", "--buildOnly", "--fp16"],
    ("8.5.2", "int8"): ["--memPoolSize=workspace:4096", "--buildOnly", "--int8"],
    ("8.6.1", "int8"): ["--memPoolSize=workspace:4096", "--skipInference", "--int8"],
    ("10.3.0", "fp32"): ["--memPoolSize=workspace:4096", "--skipInference", "--noTF32"],
    ("10.3.0", "bf16"): ["--memPoolSize=workspace:4096", "--skipInference", "--stronglyTyped"],
    ("10.3.0", "int8"): ["--memPoolSize=workspace:4096", "--skipInference", "--stronglyTyped"],
    ("11.0.0", "fp32"): ["--memPoolSize=workspace:4096", "--skipInference", "--noTF32"],
    ("11.0.0", "bf16"): ["--memPoolSize=workspace:4096", "--skipInference"],
    ("11.0.0", "int8"): ["--memPoolSize=workspace:4096", "--skipInference"],
}


@pytest.mark.parametrize(("version", "precision"), FLAGS)
def test_flags_of_each_version(device_bundle, kit_of, tmp_path, version, precision):
    release = "8.2" if version < "9" and version[1] == "." else "10.3"
    kit = kit_of(device_bundle(f"a100-{precision}", f"@tensorrt-{release}", graph=precision, name="kit"))
    # fp16's layers in fp32 have a test of their own
    settings_file = kit.root / "device" / "settings.sh"
    settings_file.write_text(re.sub(r"(?m)^KIT_FP32_LAYERS=.*$", "KIT_FP32_LAYERS=()", settings_file.read_text()))
    results = tmp_path / "the results of it"
    ran = kit.run("build_engine.sh", "--output", results, version=version)
    assert ran.code == 0, ran.output
    graph = "tiny-fp32.onnx" if precision == "fp32" else "tiny-int8.onnx"
    assert flags(results) == [
        f"--onnx={graph}", "--saveEngine=engine.plan", "--timingCacheFile=timing.cache",
        "--profilingVerbosity=detailed", "--exportLayerInfo=layers.json", *FLAGS[version, precision],
        "--minShapes=x:1x4", "--optShapes=x:1x4", "--maxShapes=x:8x4",
    ]  # fmt: skip


@pytest.mark.parametrize(("version", "options", "extra"), [
    ("8.2.1", (), []), ("8.5.2", (), []), ("10.3.0", (), []), ("10.3.0", ("--with-transfers",), []), ("11.0.0", (), []),
    ("11.0.0", ("--with-transfers",), ["--includeDataTransfers"]),
])  # fmt: skip
def test_measuring(device_bundle, kit_of, tmp_path, version, options, extra):
    kit = kit_of(device_bundle("a100-int8", "@tensorrt-8.2"))
    results = kit.measure(tmp_path / "results", version=version, measure=options)
    for batch in (1, 8):
        given = ["--loadEngine=engine.plan", *extra, "--warmUp=1000", "--duration=10", "--iterations=100"]
        given += [f"--shapes=x:{batch}x4"]
        assert flags(results, f"measure-b{batch}.log") == [*given, f"--exportTimes=times-b{batch}.json"]
        assert flags(results, f"profile-b{batch}.log") == [*given, f"--exportProfile=profile-b{batch}.json"]
        json.loads((results / f"times-b{batch}.json").read_text())
    run = dict(line.split("=", 1) for line in (results / "run.txt").read_text().splitlines())
    left_out = version.startswith("11") and not options
    assert run["transfers"] == ("excluded" if left_out else "included")
    assert (run["cuda_graph"], run["spin_wait"]) == (("yes", "yes") if version.startswith("11") else ("no", "no"))
    assert (run["tensorrt"], run["tensorrt_source"]) == (version, "trtexec")
    assert (run["cuda_device"], run["compute_capability"]) == ("NVIDIA A100-SXM4-40GB", "8.0")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=results, check=True)
    listed = {line[66:] for line in (results / "SHA256SUMS").read_text().splitlines()}
    assert {"run.txt", "build.txt", "times-b1.json", "profile-b8.json", "layers.json", "build.log"} <= listed


@pytest.mark.parametrize(("target", "device", "version", "range_text"), [
    ("jetson-int8", "host", "8.6.2", "10.3 to 10.7"), ("jetson-int8", "host", "10.8.0", "10.3 to 10.7"),
    ("jetson-fp16", "xavier-nx@jetpack-5.1", "8.4.1", "8.5 to 8.5"), ("t4-int8", "host", "11.0.0", "10.3 to 10.16"),
    ("jetson-fp16", "jetson-nano", "8.4.0", "8.2 to 8.2"), ("a100-int8", "host", "8.2.1", "10.3 to 11.1"),
])  # fmt: skip
def test_a_version_outside_is_refused(device_bundle, kit_of, tmp_path, target, device, version, range_text):
    kit = kit_of(device_bundle(target, device, graph=target.rpartition("-")[2]))
    ran = kit.run("build_engine.sh", "--output", tmp_path / "results", version=version)
    assert ran.code == 2
    assert f"this kit is for TensorRT {range_text}, and here is TensorRT {version}" in ran.output
    assert f"--device @tensorrt-{version.rpartition('.')[0]}" in ran.output
    assert not (tmp_path / "results").exists()


def test_the_version_without_trtexecs_first_line(device_bundle, kit_of, add_tool, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    told = kit.run("build_engine.sh", "--output", tmp_path / "a", version="10.3.0", STAND_IN_BANNER="TensorRT v10.3.0")
    assert told.code == 0, told.output
    silent = kit.run("build_engine.sh", "--output", tmp_path / "b", version="10.3.0", STAND_IN_BANNER="trtexec")
    assert silent.code == 2
    assert "neither" in silent.output
    assert "names the version of TensorRT" in silent.output
    add_tool(
        "dpkg-query", "echo 'deinstall ok config-files 8.6.1.6-1+cuda12.0'; echo 'install ok installed 10.3.0.26-1'"
    )
    packaged = kit.run("build_engine.sh", "--output", tmp_path / "b", version="10.3.0", STAND_IN_BANNER="trtexec")
    assert packaged.code == 0, packaged.output
    assert "tensorrt_source=dpkg\n" in (tmp_path / "b" / "build.txt").read_text()


def test_an_engine_is_tuned_for_the_first_batch_asked_for(device_bundle, kit_of, tmp_path):
    root = device_bundle("a100-int8", batches=(4, 1, 8))
    assert "batches from 1 to 8, tuned for 4;" in (root / "device" / "README.md").read_text()
    results = kit_of(root).measure(tmp_path / "results", version="10.3.0")
    assert flags(results)[-3:] == ["--minShapes=x:1x4", "--optShapes=x:4x4", "--maxShapes=x:8x4"]
    assert sorted(path.name for path in results.glob("times-*")) == ["times-b1.json", "times-b4.json", "times-b8.json"]


def test_one_batch_and_a_frozen_one(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    results = kit.measure(tmp_path / "four", version="10.3.0", build=("--batch", 4))
    assert flags(results)[-3:] == ["--minShapes=x:4x4", "--optShapes=x:4x4", "--maxShapes=x:4x4"]
    assert [path.name for path in results.glob("times-*")] == ["times-b4.json"]
    frozen = (TensorSpec("x", "float32", (2, 4)),)
    kit = kit_of(device_bundle("a100-int8", inputs=frozen, name="frozen"))
    results = kit.measure(tmp_path / "two", version="10.3.0")
    assert not [flag for flag in flags(results) + flags(results, "measure-b2.log") if "hapes" in flag]
    ran = kit.run("build_engine.sh", "--batch", 4, version="10.3.0")
    assert (ran.code, "has the batch 2 frozen in, and --batch asks for 4" in ran.output) == (2, True)


def test_names_that_a_shell_would_read(device_bundle, kit_of, tmp_path):
    odd = (TensorSpec('a $(touch x) `b`" :0', "float32", ("batch", 2, 3)), TensorSpec("y", "int64", ("batch",)))
    kit = kit_of(device_bundle("a100-int8", inputs=odd))
    results = kit.measure(tmp_path / "results", version="10.3.0", build=("--batch", 7))
    saved = json.loads((results / "engine.plan").read_text().splitlines()[1])
    assert '--minShapes=a $(touch x) `b`" :0:7x2x3,y:7' in saved
    assert not list(tmp_path.rglob("x"))


@given(name=st.text(st.characters(exclude_categories=("C", "Zl", "Zp"), exclude_characters=",'"), min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_reaches_the_script_as_it_is(bundle, name):
    if "@batch" in name or not name.isprintable():
        return
    entry = replace(bundle.manifest.artifacts[0], inputs=(TensorSpec(name, "float32", ("batch", 3)),), name=name)
    manifest = replace(bundle.manifest, target=parse_target("a100-int8"))
    script = _settings(manifest, entry, None, (8, 1), ()) + 'printf "%s\\n" "$KIT_ARTIFACT" "${KIT_INPUTS[@]}"'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert ran.stdout.decode() == f"{name}\n{name}:@batchx3\n"


@pytest.mark.parametrize("name", ["a,b", "it's", "line\nbreak"])
def test_a_name_that_trtexec_cannot_be_given(device_bundle, name):
    with pytest.raises(ExportError, match="trtexec cannot be given the shape of the input") as raised:
        device_bundle("a100-int8", inputs=(TensorSpec(name, "float32", ("batch", 4)),))
    assert "rename the input" in raised.value.next_step


def test_implicit_calibration(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8", "@tensorrt-8.5", cache=CACHE))
    results = kit.measure(tmp_path / "results", version="8.5.2", build=("--implicit",))
    assert flags(results)[0] == "--onnx=tiny-fp32.onnx"
    assert {"--int8", "--calib=calibration.cache"} <= set(flags(results))
    assert (results / "calibration.cache").read_text() == CACHE.replace("100300", "8502")
    assert "quantization=implicit\n" in (results / "run.txt").read_text()
    gone = kit.run("build_engine.sh", "--implicit", version="11.0.0")
    assert (gone.code, "TensorRT 11.0.0 has no implicit calibration any more" in gone.output) == (2, True)
    kit = kit_of(device_bundle("a100-int8", name="without"))
    none = kit.run("build_engine.sh", "--implicit", version="10.3.0")
    assert (none.code, "this kit has no calibration cache" in none.output) == (2, True)


def test_the_layers_that_fp16_keeps_in_fp32_are_found(tmp_path):
    narrow = narrowed(rewrite_for_device(graph(LAYER_NORM), ({"x": X},), "8.5")[0]).model
    onnx.save(narrow, tmp_path / "narrow.onnx")
    assert fp32_layers(tmp_path / "narrow.onnx") == (
        "h/mean", "h/centred", "h/square", "h/variance", "h/shifted", "h/deviation", "h/normalised",
    )  # fmt: skip


def test_layers_in_fp32_stay_so_before_strong_types(tmp_path, device_bundle, kit_of):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        mixed (float16[batch, 4] x) => (float16[batch, 4] y) {
            [up] wide = Cast<to = 1>(x)
            [power] squared = Mul(wide, wide)
            [a_colon] root = Sqrt(squared)
            [down] narrow = Cast<to = 10>(root)
            [sum] y = Add(narrow, narrow)
        }""")
    model.graph.node[2].name = "a:colon"  # trtexec splits at the last one
    onnx.save(model, tmp_path / "mixed.onnx")
    assert fp32_layers(tmp_path / "mixed.onnx") == ("power", "a:colon")
    model.graph.node[2].name = "it's"  # it takes a quotation mark for the begin of a name
    onnx.save(model, tmp_path / "mixed.onnx")
    assert fp32_layers(tmp_path / "mixed.onnx") == ("power",)
    kit = kit_of(device_bundle("a100-fp16", "@tensorrt-8.4", graph="fp16"))
    settings_file = kit.root / "device" / "settings.sh"
    settings_file.write_text(
        re.sub(r"(?m)^KIT_FP32_LAYERS=.*$", "KIT_FP32_LAYERS=(power 'a b')", settings_file.read_text())
    )
    ran = kit.run("build_engine.sh", "--output", tmp_path / "results", version="8.4.1")
    assert ran.code == 0, ran.output
    saved = json.loads((tmp_path / "results" / "engine.plan").read_text().splitlines()[1])
    assert {
        "--fp16", "--precisionConstraints=obey", "--layerPrecisions=power:fp32,a b:fp32",
        "--layerOutputTypes=power:fp32,a b:fp32",
    } <= set(saved)  # fmt: skip
    kit = kit_of(device_bundle("a100-fp16", "@tensorrt-8.2", graph="fp16", name="before"))
    settings_file = kit.root / "device" / "settings.sh"
    settings_file.write_text(re.sub(r"(?m)^KIT_FP32_LAYERS=.*$", "KIT_FP32_LAYERS=(power)", settings_file.read_text()))
    ran = kit.run("build_engine.sh", "--output", tmp_path / "before", version="8.2.1")
    assert ran.code == 0, ran.output  # the stand-in knows that 8.2 has no such flag
    assert not [flag for flag in flags(tmp_path / "before") if "layer" in flag and "layers.json" not in flag]


def test_a_changed_graph_is_refused(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle())
    graph = kit.root / "artifacts" / "tiny-int8.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    ran = kit.run("build_engine.sh", "--output", tmp_path / "results", version="10.3.0")
    assert (ran.code, "is missing or is not the one that this kit is for" in ran.output) == (2, True)


@pytest.mark.parametrize(("script", "arguments", "message"), [
    ("build_engine.sh", ("--batch", "0"), "--batch is 0; allowed are whole numbers from 1 on"),
    ("build_engine.sh", ("--batch",), "--batch needs a value"),
    ("build_engine.sh", ("--fast",), "unknown option --fast"),
    ("measure.sh", ("--output",), "--output needs a value"),
    ("measure.sh", ("--fast",), "unknown option --fast"),
    ("measure.sh", (), "results holds no engine of build_engine.sh"),
])  # fmt: skip
def test_wrong_options(device_bundle, kit_of, script, arguments, message):
    ran = kit_of(device_bundle()).run(script, *arguments, version="10.3.0")
    assert (ran.code, message in ran.output) == (2, True), ran.output


def test_help_needs_no_trtexec(device_bundle, kit_of):
    kit = kit_of(device_bundle())
    for script in ("build_engine.sh", "measure.sh"):
        ran = kit.run(script, "--help", version="", TRTEXEC="/nowhere")
        assert (ran.code, f"usage: {script}" in ran.output) == (0, True)
    ran = kit.run("build_engine.sh", version="10.3.0", TRTEXEC="/nowhere")
    assert (ran.code, "trtexec was not found at /nowhere" in ran.output) == (2, True)
    ran = kit.run("build_engine.sh", version="10.3.0", WORKSPACE_MIB="lots")
    assert (ran.code, "WORKSPACE_MIB is lots" in ran.output) == (2, True)


def test_failures_of_trtexec_are_shown(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle())
    ran = kit.run("build_engine.sh", "--output", tmp_path / "r", version="10.3.0", STAND_IN_FAIL="--onnx")
    assert ran.code == 2
    assert "Unknown option" in ran.output
    assert "trtexec failed; all it said is in" in ran.output
    assert not (tmp_path / "r" / "build.txt").exists()
    assert kit.run("build_engine.sh", "--output", tmp_path / "r", version="10.3.0").code == 0
    ran = kit.run("measure.sh", "--output", tmp_path / "r", version="10.3.0", STAND_IN_FAIL="--exportTimes")
    assert ran.code == 2
    assert not (tmp_path / "r" / "run.txt").exists()


def test_an_engine_of_something_else_is_not_measured(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle("a100-int8"))
    results = tmp_path / "r"
    assert kit.run("build_engine.sh", "--output", results, version="10.3.0").code == 0
    ran = kit.run("measure.sh", "--output", results, version="11.0.0")
    assert "the engine was built with TensorRT 10.3.0, and here is 11.0.0" in ran.output
    (results / "engine.plan").write_text("another")
    ran = kit.run("measure.sh", "--output", results, version="10.3.0")
    assert (ran.code, "is not the engine that build_engine.sh wrote" in ran.output) == (2, True)


def test_results_are_kept_apart(device_bundle, kit_of, tmp_path):
    kit = kit_of(device_bundle())
    kit.measure(tmp_path / "r", version="10.3.0")
    ran = kit.run("build_engine.sh", "--output", tmp_path / "r", version="10.3.0")
    assert (ran.code, "holds measured results already" in ran.output) == (2, True)
    shutil.copy(kit.bundle / "manifest.json", kit.root)  # as if the scripts ran inside the bundle itself
    ran = kit.run("build_engine.sh", version="10.3.0", cwd=kit.root)
    assert (ran.code, "lies in the bundle, whose files are sealed" in ran.output) == (2, True)
    assert not (kit.root / "results").exists()


def test_what_the_device_says_of_itself(device_bundle, kit_of, add_tool, tmp_path):
    add_tool("nvpmodel", 'echo "NV Power Mode: MAXN_SUPER"; printf "2\\a\\n"')
    add_tool("jetson_clocks", 'echo "GPU MinFreq=306000000 MaxFreq=1020000000"; exit 1')
    kit = kit_of(device_bundle())
    results = kit.measure(tmp_path / "r", version="10.3.0")
    run = (results / "run.txt").read_text()
    assert "power_mode=MAXN_SUPER\n" in run
    assert "board=NVIDIA Jetson Orin Nano Developer Kit\n" in run
    clocks = (results / "jetson_clocks.txt").read_text()
    assert clocks.endswith("MaxFreq=1020000000\n(jetson_clocks ended with an error)\n")
    add_tool(
        "nvidia-smi",
        'case "$*" in *power.limit*) echo 400 W;; *driver*) echo 550.1;; *mig*) echo Disabled;; *) echo all;; esac',
    )
    (tmp_path / "the device's tools" / "nvpmodel").unlink()
    results = kit.measure(tmp_path / "again", version="10.3.0")
    assert "power_mode=power limit 400 W\ndriver=550.1\nmig=Disabled\n" in (results / "run.txt").read_text()


def test_ranges_and_workspace():
    assert str(tensorrt_range(parse_target("jetson-int8"))) == "10.3 to 10.7"
    assert str(tensorrt_range(parse_target("jetson-fp16", "jetson-nano"))) == "8.2 to 8.2"
    versions = tensorrt_range(parse_target("t4-fp16", "@tensorrt-8.6"))
    assert [versions.holds(one) for one in ("8.5.9", "8.6.0", "9.1.0", "10.16.9", "10.17.0")] == [
        False, True, True, True, False,
    ]  # fmt: skip
    sizes = {name: workspace_mib(parse_target("jetson-fp16", name)) for name in ("orin-nano", "jetson-nano")}
    assert sizes == {"orin-nano": 1907, "jetson-nano": 953}
    assert workspace_mib(parse_target("a100-fp32")) == 4096


def test_a_frozen_batch_is_told_from_a_free_one(bundle):
    entry = bundle.manifest.artifacts[0]
    assert frozen_batch(entry) is None


def test_the_readme_says_what_to_do(device_bundle):
    text = Path(device_bundle("jetson-int8", cache=CACHE) / "device" / "README.md").read_text()
    for expected in (
        "TensorRT 10.3 to 10.7", "bash device/build_engine.sh", "bash device/measure.sh",
        "tsexport attach tiny-jetson-int8", "batches from 1 to 8, tuned for 1", "--implicit", "--with-transfers",
        "--stronglyTyped",
    ):  # fmt: skip
        assert expected in text
