"""A runtime that ends the process on a failure ends another process than the build's."""

from dataclasses import replace

import numpy as np
import pytest

from tsexport.errors import UsageError
from tsexport.exporters.checks import FeedSet, check_parity
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.runtimes.rehearsal import CAN_END_THE_PROCESS, rehearse
from tsexport.types import ModelSpec, TensorSpec

FAR_INDEX = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch, 2] ids) => (float[batch, 2, 4] y)
{ i = Add(ids, far)  y = Gather<axis = 0>(table, i) }
"""


@pytest.fixture(scope="module")
def far_index(onnx_artifact):
    """Looks up row 99 of a table of 6: tract does not check, and its panic is not passed on."""
    inputs, outputs = (TensorSpec("ids", "int64", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 2, 4)),)
    table = np.zeros((6, 4), np.float32)
    return onnx_artifact(FAR_INDEX, inputs, outputs, table=table, far=np.array([99]))


def test_a_panic_ends_the_rehearsal_alone(far_index):
    with pytest.raises(
        UsageError, match=r"tract refuses model: its process ended with signal SIGABRT: range start index 396 out of"
    ):
        rehearse(far_index, "tract", [{"ids": np.zeros((1, 2), np.int64)}])


def test_parity_on_tract_is_rehearsed(far_index):
    class Source:
        spec = ModelSpec("far", "test", "unknown", far_index.inputs, far_index.outputs)

        def run(self, feeds):
            return {"y": np.zeros((*feeds["ids"].shape, 4), np.float32)}

    sets = (FeedSet("random", {"ids": np.zeros((1, 2), np.int64)}),)
    with pytest.raises(UsageError, match="tract refuses model"):
        check_parity(Source(), far_index, "tract", sets, TOLERANCES["fp32-export"], scaled=True)


def test_what_runs_is_let_through(small, small_feeds):
    assert "tract" in CAN_END_THE_PROCESS
    rehearse(small.artifacts["onnx"], "tract", [small_feeds(1), small_feeds(3)])


def test_what_raises_is_left_for_the_caller_to_meet(small, small_feeds, tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"\x07not a model")
    damaged = replace(small.artifacts["onnx"], path=path, files=(path,))
    rehearse(damaged, "tract", [small_feeds(1)])


def test_a_rehearsal_that_does_not_end_is_ended(small, small_feeds):
    with pytest.raises(UsageError, match=r"tract did not answer to \w+ in 0\.001 s"):
        rehearse(small.artifacts["onnx"], "tract", [small_feeds(1)], timeout_s=0.001)


def test_runtimes_that_raise_need_no_rehearsal(far_index):
    rehearse(far_index, "onnxruntime", [{"ids": np.zeros((1, 2), np.int64)}])


def test_an_artifact_in_fp16_is_rehearsed_on_onnxruntime(small, small_feeds):
    narrow = replace(small.artifacts["onnx"], precision="fp16")
    rehearse(narrow, "onnxruntime", [small_feeds(1)])
    with pytest.raises(UsageError, match=r"onnxruntime did not answer to \w+ in 0\.001 s"):
        rehearse(narrow, "onnxruntime", [small_feeds(1)], timeout_s=0.001)
