"""Measuring in processes that die: what cannot be measured is left out and said, and never ends a build with 6."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tsexport.bench.fingerprint import fingerprint
from tsexport.cache import Cache
from tsexport.errors import UnsupportedError
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.progress import Progress
from tsexport.stages.context import Context
from tsexport.stages.data import DataPlan
from tsexport.stages.measuring import Placed, measure_placed, race_placed, worth_every_batch
from tsexport.stages.samples import Samples, SamplesRecord
from tsexport.targets import host_cpu, parse_target
from tsexport.types import Artifact, ModelSpec, TensorSpec, files_sha256

INPUTS = (TensorSpec("x", "float32", ("batch", 2)),)
OUTPUTS = (TensorSpec("y", "float32", ("batch", 2)),)
SOUND = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2] x) => (float[batch, 2] y) { y = Relu(x) }"""
# Reshape fails in ONNX Runtime at every batch but 1.
ONE_ROW = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2] x) => (float[batch, 2] y) <int64[2] s = {1, 2}> { y = Reshape(x, s) }"""
NO_ROW = ONE_ROW.replace("{1, 2}", "{3, 5}")


@dataclass
class Feeds:
    """What measuring reads of the samples."""

    feeds: dict[str, Any] = field(default_factory=lambda: {"x": np.ones((8, 2), np.float32)})


@pytest.fixture
def context(tmp_path):
    options = BuildOptions("linear", "cpu4-fp32", tmp_path, seconds=0.1, batches=(1, 4))
    target = parse_target("cpu4-fp32")
    plan = DataPlan(None, None, None, False, 0, "")
    return Context(options, target, host_cpu(), identify("linear"), plan, Cache(tmp_path / "cache"), 1)


@pytest.fixture
def placed(tmp_path):
    def write(name: str, text: str) -> Placed:
        path: Path = tmp_path / f"{name}.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        artifact = Artifact(
            name, path, "onnx", "fp32", INPUTS, OUTPUTS, (path,), files_sha256((path,)), path.stat().st_size
        )
        return Placed(artifact, "onnxruntime")

    return write


@pytest.fixture
def step():
    with Progress((), quiet=True).step("measure") as running:
        yield running


def test_what_dies_is_left_out_of_the_race(context, placed, step):
    said = []
    one, other, dying = placed("one", SOUND), placed("other", SOUND), placed("dying", NO_ROW)
    result = race_placed(context, Feeds(), [one, dying, other], (1,), step, said.append)
    assert [entry.artifact for entry in result.entries] == ["one", "other"]
    (line,) = said
    assert line.startswith(
        "dying on onnxruntime is left out of the race: dying on onnxruntime: onnxruntime failed on dying at batch"
    )


def test_every_number_of_threads_has_its_contestant(context, placed, step):
    result = race_placed(context, Feeds(), [placed("one", SOUND)], (1, 2), step, lambda line: None)
    assert [(entry.name, entry.threads) for entry in result.entries] == [
        ("one on onnxruntime, 1 thread", 1),
        ("one on onnxruntime, 2 threads", 2),
    ]


def test_the_first_may_be_left_out_where_no_baseline_is_named(context, placed, step):
    result = race_placed(
        context, Feeds(), [placed("dying", NO_ROW), placed("sound", SOUND)], (1,), step, lambda line: None
    )
    assert [entry.artifact for entry in result.entries] == ["sound"]


def test_a_race_that_nothing_survives_is_not_supported(context, placed, step):
    with pytest.raises(UnsupportedError, match="this machine could not time the artifacts") as caught:
        race_placed(context, Feeds(), [placed("dying", NO_ROW)], (1,), step, lambda line: None)
    assert caught.value.exit_code == 5


def test_a_race_without_its_baseline_is_not_supported(context, placed, step):
    sound, dying = placed("sound", SOUND), placed("dying", NO_ROW)
    with pytest.raises(UnsupportedError, match="this machine could not time the artifacts"):
        race_placed(context, Feeds(), [dying, sound], (1,), step, lambda line: None, baseline=dying)


def test_a_batch_size_that_dies_is_left_out(context, placed, step):
    said = []
    artifacts = [placed("sound", SOUND), placed("one-row", ONE_ROW)]
    found = measure_placed(context, Feeds(), artifacts, 1, fingerprint(), step, said.append)
    assert [(one.artifact, one.batch) for one in found] == [("sound", 1), ("sound", 4), ("one-row", 1)]
    (line,) = said
    assert line.startswith("batch 4 was not measured: one-row on onnxruntime: onnxruntime failed on one-row at batch 4")


def test_a_costly_model_is_measured_at_every_batch_only_where_it_matters(context, placed):
    slow, fast, chosen = (placed(name, SOUND) for name in ("slow", "fast", "chosen"))
    order = (fast.key, slow.key)
    record = SamplesRecord(ModelSpec("some", "cnn", "forecast", INPUTS, OUTPUTS), "", (), (), None, None, None, True)
    cheap = Samples("key", record, {}, {}, None)
    assert worth_every_batch(cheap, chosen, (slow, fast), order) == (chosen, slow, fast)
    costly = replace(cheap, record=replace(record, flops=1e11))
    assert worth_every_batch(costly, chosen, (slow, fast), order) == (chosen, fast)
    assert worth_every_batch(costly, fast, (slow, fast), order) == (fast,)
    with Progress([("measure", 1.0)], quiet=True).step("measure") as step:
        found = measure_placed(context, Feeds(), [fast, slow], 1, fingerprint(), step, print, (fast,))
    assert [(one.artifact, one.batch) for one in found] == [("fast", 1), ("fast", 4), ("slow", 1)]
