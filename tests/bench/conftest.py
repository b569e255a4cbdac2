"""Small real ONNX models, a machine, and hand-made measurements."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.checker
import onnx.parser
import pytest

from tsexport.bench.fingerprint import Machine
from tsexport.types import Artifact, Budget, Measurement, TensorSpec, file_sha256

WIDTH = 128


def chain_text(products: int) -> str:
    """ONNX text of `products` matrix products of [batch, 128] with a constant [128, 128]."""
    names = ["x", *(f"h{i}" for i in range(1, products)), "y"]
    nodes = "\n".join(f"  {b} = MatMul({a}, w)" for a, b in itertools.pairwise(names))
    return f"""
<ir_version: 8, opset_import: ["" : 17]>
chain (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y)
<int64[2] shape = {{{WIDTH}, {WIDTH}}}>
{{
  w = ConstantOfShape <value = float[1] {{0.01}}> (shape)
{nodes}
}}
"""


def write_chain(folder: Path, name: str, products: int) -> Artifact:
    model = onnx.parser.parse_model(chain_text(products))
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return Artifact(
        name=name,
        path=path,
        format="onnx",
        precision="fp32",
        inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
        outputs=(TensorSpec("y", "float32", ("batch", WIDTH)),),
        files=(path,),
        sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
        opset=17,
        runtimes=("onnxruntime",),
    )


@pytest.fixture(scope="session")
def short_chain(tmp_path_factory) -> Artifact:
    return write_chain(tmp_path_factory.mktemp("short"), "short", 1)


@pytest.fixture(scope="session")
def long_chain(tmp_path_factory) -> Artifact:
    """Thirty times the work of `short_chain`."""
    return write_chain(tmp_path_factory.mktemp("long"), "long", 30)


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((20, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="session")
def feeds_path(tmp_path_factory, feeds) -> Path:
    path = tmp_path_factory.mktemp("feeds") / "feeds.npz"
    np.savez(path, **feeds)
    return path


@pytest.fixture
def machine() -> Machine:
    """A machine with two usable cores."""
    return Machine(
        machine_id="0123456789ab",
        cpu_model="Example CPU",
        architecture="x86_64",
        instruction_set="avx2",
        vnni=False,
        bf16=False,
        flags=("avx2", "fma"),
        logical_cores=2,
        physical_cores=2,
        usable_cores=2,
        cgroup_cpu_quota=None,
        memory_bytes=8 * 1024**3,
        cgroup_memory_bytes=None,
        governor="",
        kernel="Linux 6.1",
        operating_system="Debian GNU/Linux 12",
        python="CPython 3.11.7",
        packages=(("numpy", "2.4.6"),),
    )


@pytest.fixture
def four_cores(machine) -> Machine:
    return dataclasses.replace(machine, machine_id="444444444444", logical_cores=4, physical_cores=4, usable_cores=4)


@pytest.fixture
def measurement(machine) -> Callable[..., Measurement]:
    """Make a measurement of 100 equal samples; keywords replace fields."""

    def make(ms: float = 10.0, samples: int = 100, **changes) -> Measurement:
        base = Measurement(
            artifact="model-fp32",
            runtime="onnxruntime",
            precision="fp32",
            batch=1,
            threads=2,
            machine=machine.machine_id,
            samples_ms=(ms,) * samples,
            load_ms=50.0,
            peak_memory_bytes=200 * 10**6,
            idle_memory_bytes=50 * 10**6,
            warmup_runs=9,
            processes=2,
        )
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture
def budget() -> Callable[..., Budget]:
    """Make the budget "p90 at most 100 ms, fp32, batch 1, cpu4"; keywords replace fields."""

    def make(**changes) -> Budget:
        base = Budget(
            kind="latency",
            model="model",
            device="cpu4",
            precision="fp32",
            batch=1,
            max_ms=100.0,
            source="a document",
        )
        return dataclasses.replace(base, **changes)

    return make
