"""A small real bundle: y = x @ W + b in ONNX, in fp32 and dynamically quantized, run by ONNX Runtime."""

import contextlib
import os
import subprocess
import venv
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tsexport.bench.fingerprint import Machine
from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.records import MachineRecord, write_record
from tsexport.bench.statistics import ratio_of_medians, summarize
from tsexport.bench.tables import load_tables
from tsexport.bench.verdicts import judge
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.entries import artifact_entry
from tsexport.bundles.golden import write_golden
from tsexport.bundles.manifest import (
    AbsentFormat,
    CheckpointRecord,
    DataRecord,
    Golden,
    GoldenTolerance,
    Manifest,
    Provenance,
    RankedArtifact,
    RewriteRecord,
    SelectedArtifact,
    Selection,
    manifest_text,
    selection_text,
)
from tsexport.bundles.staging import staged_bundle
from tsexport.reports.writing import render_readme, render_report
from tsexport.targets import Target
from tsexport.types import (
    Accuracy,
    AccuracyBudget,
    Artifact,
    Budget,
    Candidate,
    Comparison,
    Measurement,
    ModelSpec,
    Parity,
    TensorSpec,
    Tolerance,
    files_sha256,
)

# How long an example takes is no matter of correctness, and the machine may be busy.  A change is judged by the same
# examples as the one before it; `make test-random` looks further.
settings.register_profile("tsexport", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tsexport"))
if settings.default.derandomize:
    # Now and then Hypothesis draws a constant that it finds in the modules that are imported by then, so that another
    # order of tests, or another number in the code, changes the examples.  No setting turns that off, and these names
    # are Hypothesis's own: whether they still do is what tests/test_same_examples.py says.
    with contextlib.suppress(ImportError):
        from hypothesis.internal.conjecture.providers import HypothesisProvider
        from hypothesis.internal.constants_ast import Constants

        HypothesisProvider._local_constants = Constants()

INPUTS = (TensorSpec("x", "float32", ("batch", 4)),)
OUTPUTS = (TensorSpec("y", "float32", ("batch", 3)),)
FP32 = Tolerance("fp32", 1e-5, 1e-5, "one matrix product in single precision")
GENERATOR = np.random.default_rng(7)
WEIGHT = GENERATOR.standard_normal((4, 3)).astype(np.float32)
BIAS = GENERATOR.standard_normal(3).astype(np.float32)


def answer(x):
    """What the source model answers."""
    return x @ WEIGHT + BIAS


@dataclass(frozen=True)
class ModelFiles:
    """Exported once a session: an fp32 file and its dynamically quantized sibling."""

    fp32: Path
    int8: Path


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """A cache of these tests' own, unless one is given: in the user's, other measurements on this machine take turns
    with theirs, and what one run left there would be found by the next."""
    with pytest.MonkeyPatch.context() as patch:
        if "TSEXPORT_CACHE" not in os.environ:
            patch.setenv("TSEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    import onnx
    import onnx.parser
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = tmp_path_factory.mktemp("model")
    weight = ", ".join(str(float(value)) for value in WEIGHT.ravel())
    bias = ", ".join(str(float(value)) for value in BIAS)
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (float[batch, 4] x) => (float[batch, 3] y)
        <float[4, 3] w = {{{weight}}}, float[3] b = {{{bias}}}>
        {{ h = MatMul(x, w)  y = Add(h, b) }}""")
    fp32, int8 = folder / "tiny-fp32.onnx", folder / "tiny-int8.onnx"
    onnx.save(model, fp32)
    quantize_dynamic(fp32, int8, weight_type=QuantType.QUInt8)
    return ModelFiles(fp32, int8)


def onnx_artifact(path, precision):
    return Artifact(
        name=f"{precision}-onnx",
        path=path,
        format="onnx",
        precision=precision,
        inputs=INPUTS,
        outputs=OUTPUTS,
        files=(path,),
        sha256=files_sha256((path,)),
        size_bytes=path.stat().st_size,
        opset=17,
        runtimes=("onnxruntime",),
        provenance=("onnx.parser",),
    )


def parity(artifact):
    return Parity(artifact, "onnxruntime", "random", 4, (Comparison("y", 1e-7, 1e-8, 0.01, FP32, True),))


def example_manifest(entries, *, samples=6, batch=4):
    accuracy = Accuracy("int8-onnx", "onnxruntime", 64, 0.01, "mse", 1.25, 1.26, 0.008)
    return Manifest(
        schema_version=1,
        name="tiny-cpu4-int8",
        model=ModelSpec(
            "tiny", "linear", "forecast", INPUTS, OUTPUTS, None, {"width": 4}, 15, "tests", ("a caveat of the model",)
        ),
        config={"seed": 0, "formats": ["onnx"]},
        target=Target("cpu4-int8", "cpu4", "int8", 4, "avx2", "4-core CPU without a GPU, int8"),
        artifacts=entries,
        absent_formats=(AbsentFormat("openvino", "not asked for"),),
        selected=SelectedArtifact("int8-onnx", "onnxruntime", "fastest candidate within the accuracy budget"),
        provenance=Provenance(
            CheckpointRecord("tiny.safetensors", "a" * 64, "plain", True),
            DataRecord("synthetic series", "b" * 64, 64, "0-63", {"level 1 of 2": 40, "level 2 of 2": 24}),
            None,
            0,
            {"onnxruntime": "1.31.1", "tsexport": "0.1.0"},
        ),
        golden=Golden(samples, batch),
        budget=AccuracyBudget("mse", 0.05, 0.05),
        parity=(parity("fp32-onnx"),),
        accuracy=(accuracy, Accuracy("fp32-onnx", "onnxruntime", 64, 1e-7, "mse", 1.25, 1.25, 0.0)),
        candidates=(
            Candidate(
                "ort-dynamic-u8",
                {"weights": "u8"},
                "onnxruntime",
                "int8",
                900,
                accuracy,
                "selected",
                "fastest",
                "int8-onnx",
            ),
            Candidate(
                "ort-static-u8s8",
                {"activations": "u8", "weights": "s8", "reduce_range": True},
                "onnxruntime",
                "int8",
                990,
                replace(accuracy, artifact="ort-static-u8s8", output_error=0.09, value=1.35, degradation=0.08),
                "rejected",
                "mse 8 % worse, allowed 5 %",
            ),
            Candidate("nncf", {}, "openvino", "int8", None, None, "failed", "nncf raised: no such operator"),
        ),
        rewrites=(
            RewriteRecord("fp32-onnx", "fuse-qkv", 3, 335, 91, 2e-7),
            RewriteRecord("fp32-onnx", "row-products", 0, 91, 91, 0.0, False, "slower on onnxruntime"),
        ),
        caveats=("int8 answers depend on the rest of the batch",),
        notes=("the reference checkpoint was used",),
    )


def example_selection():
    return Selection(
        schema_version=1,
        artifact="int8-onnx",
        runtime="onnxruntime",
        why="fastest candidate within the accuracy budget",
        candidate="ort-dynamic-u8",
        recipe={"weights": "u8"},
        layers_left_in_float=(),
        order=(RankedArtifact("int8-onnx", "onnxruntime"), RankedArtifact("fp32-onnx", "onnxruntime")),
        threads=2,
        triton_batch_sizes=(1, 8),
    )


def fill(root, files, *, extra=(), int8_bound=0.2):
    """Write a bundle's content into the folder `root`; `extra` are (artifact, tolerance) that lie there already."""
    artifacts = root / "artifacts"
    artifacts.mkdir(exist_ok=True)
    for path in (files.fp32, files.int8):
        (artifacts / path.name).write_bytes(path.read_bytes())
    tolerances = (
        GoldenTolerance("fp32", FP32.reason, 1e-5, 1e-5),
        GoldenTolerance("int8 budget", "measured error, doubled", max_relative_rms=int8_bound),
    )
    entries = (
        artifact_entry(onnx_artifact(artifacts / files.fp32.name, "fp32"), root, tolerances[0]),
        artifact_entry(onnx_artifact(artifacts / files.int8.name, "int8"), root, tolerances[1], batch_dependent=True),
        *(artifact_entry(artifact, root, tolerance) for artifact, tolerance in extra),
    )
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    write_golden(root, {"x": x}, {"y": answer(x)})
    (root / "manifest.json").write_text(manifest_text(example_manifest(entries)))
    (root / "selection.json").write_text(selection_text(example_selection()))
    (root / "README.md").write_text("# tiny\n")


@pytest.fixture
def bundle_folder(tmp_path, model_files):
    """A sealed bundle's folder."""
    destination = tmp_path / "dist" / "tiny-cpu4-int8"
    with staged_bundle(destination, force=False) as staging:
        fill(staging, model_files)
    return destination


@pytest.fixture
def bundle(bundle_folder):
    return open_bundle(bundle_folder)


@pytest.fixture
def torchscript_bundle(tmp_path, model_files):
    """A bundle that holds the fp32 model as TorchScript too."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(WEIGHT.T.copy()))
        module.bias.copy_(torch.from_numpy(BIAS))
    destination = tmp_path / "dist" / "tiny-torchscript"
    with staged_bundle(destination, force=False) as staging:
        (staging / "artifacts").mkdir()
        path = staging / "artifacts" / "tiny-fp32.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of TorchScript
            torch.jit.save(torch.jit.trace(module.eval(), torch.ones(2, 4)), path)
        artifact = replace(
            onnx_artifact(path, "fp32"),
            name="fp32-torchscript",
            format="torchscript",
            opset=None,
            runtimes=("torchscript",),
        )
        fill(staging, model_files, extra=((artifact, GoldenTolerance("fp32", FP32.reason, 1e-5, 1e-5)),))
    return destination


@pytest.fixture
def missed_bundle(bundle_folder):
    """A bundle whose fp32 artifact misses one golden value; digests hold."""
    inputs, outputs = (dict(np.load(bundle_folder / f"golden/{name}.npz")) for name in ("inputs", "outputs"))
    outputs["y"][2, 1] += 0.01
    write_golden(bundle_folder, inputs, outputs)
    seal(bundle_folder)
    return bundle_folder


def example_record(batches=(1, 10, 32)):
    """What bench would write for the example bundle; the latencies are drawn, not measured."""
    machine = Machine(
        machine_id="0123456789ab", cpu_model="Example CPU", architecture="x86_64", instruction_set="avx2", vnni=False,
        bf16=False, flags=("avx2",), logical_cores=4, physical_cores=2, usable_cores=2, cgroup_cpu_quota=None,
        memory_bytes=8 * 2**30, cgroup_memory_bytes=None, governor="", kernel="Linux 6", operating_system="Debian 12",
        python="CPython 3.11", packages=(),
    )  # fmt: skip
    generator = np.random.default_rng(5)

    def draw(scale, count=700):
        return tuple((scale * (1 + generator.lognormal(-3, 1, count))).tolist())

    measurements = tuple(
        Measurement(name, "onnxruntime", precision, batch, 2, machine.machine_id, draw(scale * batch**0.7), 41.0,
                    120 * 10**6, 40 * 10**6, 50, 2)
        for name, precision, scale in (("fp32-onnx", "fp32", 0.5), ("int8-onnx", "int8", 0.3))
        for batch in batches
    )  # fmt: skip
    contestants = (("fp32-onnx", 0.5), ("int8-onnx", 0.3), ("ort-static-u8s8", 0.62))
    blocks = {name: tuple(draw(scale, 25) for _ in range(10)) for name, scale in contestants}
    race = RaceResult(1, "fp32-onnx on onnxruntime", 10, 1, 3.0, tuple(
        RaceEntry(f"{name} on onnxruntime", name, "onnxruntime", 2, blocks[name],
                  summarize([ms for block in blocks[name] for ms in block]),
                  ratio_of_medians(blocks["fp32-onnx"], blocks[name], seed=0), True, 40.0, 120 * 10**6)
        for name, _ in contestants
    ))  # fmt: skip
    budgets = (
        Budget("latency", "tiny", "cpu4", "int8", 1, max_ms=100.0, source="Example Plan"),
        Budget("latency", "tiny", "orin-nano", "int8", 1, max_ms=5.0, source="Example Plan", caveat="an old figure"),
    )
    verdicts = judge(budgets, measurements, machine=machine)
    return MachineRecord(
        machine, measurements, (race,), verdicts, (("export", 12.5), ("quantize", 3.25)),
        service_levels=load_tables().service_level,
    )  # fmt: skip


@pytest.fixture
def measured_folder(tmp_path, model_files):
    """A bundle with measurements, a report and a README."""
    destination = tmp_path / "dist" / "tiny-cpu4-int8"
    with staged_bundle(destination, force=False) as staging:
        fill(staging, model_files)
        write_record(example_record(), staging / "measurements")
        bundle = open_bundle(staging)
        (staging / "README.md").write_text(render_readme(bundle.manifest, bundle.selection))
        (staging / "report.html").write_text(render_report([bundle]))
    return destination


@pytest.fixture(scope="session")
def fresh_environment(tmp_path_factory):
    """Return a function that makes an environment with what is named and nothing else, and gives its Python.

    Where pip reaches no package index, the test is skipped.
    """

    def pip(executable, *arguments):
        return subprocess.run(
            [executable, "-m", "pip", "--no-input", *map(str, arguments)], capture_output=True, text=True
        )

    def make(*requirements):
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=True)
        executable = folder / "bin" / "python"
        probe = pip(executable, "install", "--quiet", "--dry-run", "--no-deps", "numpy")
        if probe.returncode != 0:
            pytest.skip(f"pip installs nothing here: {probe.stderr.strip().splitlines()[-1]}")
        done = pip(executable, "install", "--quiet", *requirements)
        assert done.returncode == 0, done.stderr
        return executable

    return make
