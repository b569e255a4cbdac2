"""`tsexport bench` on a GPU: what is timed there, what the machine stands for, and what a GPU's time judges."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.records import MachineRecord, record_from_text, record_to_text
from tsexport.bench.rows import measurement_rows
from tsexport.bench.verdicts import judge
from tsexport.bench.worker import Timer
from tsexport.bundles.manifest import ArtifactEntry, GoldenTolerance
from tsexport.gpus import Gpu
from tsexport.measurements.timing_pairs import timing_pairs
from tsexport.targets import gpu_here, parse_target
from tsexport.types import Budget

H200 = Gpu("NVIDIA H200", 150754820096, "580.159.04", "9.0", 700.0, 1980)
A100 = Gpu("NVIDIA A100-SXM4-80GB", 85899345920, "580.159.04", "8.0", 400.0, 1410)
TOLERANCE = GoldenTolerance("golden", "equal machines", atol=1e-6, rtol=1e-5)


def entry(name, artifact_format, precision, runtimes):
    return ArtifactEntry(
        name=name, path=f"artifacts/{name}", files=(), format=artifact_format, precision=precision, opset=None,
        size_bytes=1, sha256="", inputs=(), outputs=(), runtimes=runtimes, options=(), provenance=(),
        golden_tolerance=TOLERANCE, batch_dependent=False,
    )  # fmt: skip


class Bundle:
    """What `timing_pairs` reads of a manifest: the target and the artifacts."""

    def __init__(self, target, *artifacts):
        self.target, self.artifacts = parse_target(target), artifacts


GPU_BUNDLE = Bundle(
    "h200-bf16",
    entry("bf16-tensorrt", "onnx", "bf16", ("onnxruntime",)),
    entry("torchscript-fp32", "torchscript", "fp32", ("torchscript",)),
    entry("torchscript-bf16", "torchscript", "bf16", ("torch-cuda",)),
)


def names(timed):
    return [(one.name, runtime) for one, runtime in timed.pairs]


def test_a_gpu_times_the_scripts_of_a_bundle():
    timed = timing_pairs(GPU_BUNDLE, {"torchscript", "onnxruntime", "torch-cuda"}, H200)
    assert names(timed) == [("torchscript-fp32", "torch-cuda"), ("torchscript-bf16", "torch-cuda")]
    assert (timed.device, timed.on_gpu) == ("h200", True)
    assert timing_pairs(GPU_BUNDLE, {"torch-cuda"}, A100).device == "a100"


@pytest.mark.parametrize(("here", "gpu"), [({"torchscript", "onnxruntime"}, None), ({"torchscript"}, H200)])
def test_without_a_gpu_the_fp32_artifacts_are_timed_here(here, gpu):
    """Also where there is a GPU and torch has no CUDA."""
    timed = timing_pairs(GPU_BUNDLE, here, gpu)
    assert names(timed) == [("torchscript-fp32", "torchscript")]
    assert (timed.device, timed.on_gpu) == ("cpu4", False)


def test_a_cpu_bundle_is_timed_on_the_cpu_where_there_is_a_gpu():
    bundle = Bundle("cpu4-fp32", entry("torchscript-fp32", "torchscript", "fp32", ("torchscript",)))
    assert names(timing_pairs(bundle, {"torchscript", "torch-cuda"}, H200)) == [("torchscript-fp32", "torchscript")]


def budget(device, kind="latency", **figures):
    return Budget(kind=kind, model="patchtst", device=device, precision="bf16", batch=1, **figures)


@pytest.fixture
def on_gpu(machine, measurement):
    """A machine with an A100, and a measurement on it."""
    with_gpu = replace(machine, gpu=A100)
    return with_gpu, measurement(precision="bf16", artifact="torchscript-bf16", runtime="torch-cuda", batch=1)


def test_a_gpu_judges_the_rows_of_its_own_device(on_gpu):
    machine, measured = on_gpu
    slowest = max(measured.samples_ms)
    met, missed = judge(
        [budget("a100", max_ms=2 * slowest), budget("a100", max_ms=slowest / 2)],
        [measured], machine=machine, device="a100",
    )  # fmt: skip
    assert (met.status, missed.status) == ("met", "missed")
    assert "torchscript-bf16 on torch-cuda, batch 1, 100 samples, both copies included, on NVIDIA A100" in met.reason


def test_another_gpu_is_told_beside_the_row_and_judges_none(on_gpu):
    machine, measured = on_gpu
    (verdict,) = judge(
        [budget("a100", max_ms=1e-6)], [measured], machine=replace(machine, gpu=H200), device="h200"
    )  # fmt: skip
    assert verdict.status == "not measured"
    assert verdict.reason.startswith("a budget of a100; measured on h200: NVIDIA H200, driver 580.159.04, p90 ")
    assert verdict.reason.endswith("of torchscript-bf16 on torch-cuda, which decides nothing here")


def test_a_gpu_judges_no_row_of_a_cpu_nor_of_any_device(on_gpu):
    machine, measured = on_gpu
    rows = [budget("cpu4", max_ms=1e9), budget("cpu", max_ms=1e9), budget(None, max_ms=1e9)]
    verdicts = judge(rows, [measured], machine=machine, device="a100")
    assert {one.status for one in verdicts} == {"not measured"}
    assert verdicts[2].reason.startswith("a budget of any device; measured on a100")


def test_the_host_s_memory_is_no_memory_of_the_model(on_gpu):
    machine, measured = on_gpu
    (verdict,) = judge([budget("a100", "memory", max_memory_mb=1e9)], [measured], machine=machine, device="a100")
    assert verdict.status == "not measured"
    assert "the process's memory is the host's" in verdict.reason


def test_the_fingerprint_names_the_gpu(monkeypatch):
    """A machine with a GPU is another machine; without one its id is what it was before GPUs were asked for."""
    monkeypatch.setattr("tsexport.bench.fingerprint.first_gpu", lambda: None)
    plain = fingerprint()
    monkeypatch.setattr("tsexport.bench.fingerprint.first_gpu", lambda: H200)
    found = fingerprint()
    assert plain.gpu is None
    assert found.gpu == H200
    assert found.machine_id != plain.machine_id
    monkeypatch.setattr("tsexport.bench.fingerprint.first_gpu", lambda: replace(H200, driver="600.1"))
    assert fingerprint().machine_id == found.machine_id


def test_a_record_from_before_gpus_is_read(machine, measurement):
    record = MachineRecord(machine, (measurement(),))
    document = json.loads(record_to_text(record))
    del document["machine"]["gpu"], document["measurements"][0]["device_ms"]
    assert record_from_text(json.dumps(document), name="old.json") == record


class OnDevice:
    """A session whose device has a clock that tells the number of launches."""

    launches = 0

    def run(self, feeds):
        return feeds

    def device_ms(self, batch):
        self.launches += 1
        return float(self.launches * batch)


def test_a_session_with_a_device_s_clock_is_asked_for_it(measurement):
    feeds = {"x": np.zeros((4, 2), np.float32)}
    assert Timer(OnDevice(), feeds).device_ms(2, 3) == (2.0, 4.0, 6.0)
    session = OnDevice()
    session.__class__ = type("NoClock", (), {"run": OnDevice.run})
    assert Timer(session, feeds).device_ms(2, 3) == ()
    told = measurement_rows([measurement(), replace(measurement(), device_ms=(0.5,) * 64)])
    assert [one.device_p50 for one in told] == ["n/a", "0.5 ms"]


def test_whether_the_target_s_device_is_here(monkeypatch):
    monkeypatch.setattr("tsexport.targets.first_gpu", lambda: H200)
    assert gpu_here(parse_target("h200-bf16"))
    assert not gpu_here(parse_target("a100-bf16"))
    assert not gpu_here(parse_target("cpu4-fp32"))
    monkeypatch.setattr("tsexport.targets.first_gpu", lambda: None)
    assert not gpu_here(parse_target("h200-bf16"))
