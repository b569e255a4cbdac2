"""What a TensorRT build asks for, by version: flags, profiles, types, and which versions are taken.  Needs no GPU."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tsexport.errors import FeedError, UnsupportedError, UsageError
from tsexport.runtimes.options import DEFAULT_TENSORRT_BATCHES
from tsexport.runtimes.tensorrt_plan import (
    MOST_WORKSPACE_BYTES,
    BuildPlan,
    ProfileRow,
    batches_with,
    describe_node_error,
    device_dtype,
    plan_build,
    plan_profile,
    refusal_of_version,
    short_version,
    to_device,
    workspace_bytes,
)
from tsexport.types import TensorSpec

X = TensorSpec("x", "float32", ("batch", 128, 8))
IDS = TensorSpec("ids", "int64", ("batch", 2))
GRID = TensorSpec("grid", "float32", (64, 64))


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version", ["8.6.0", "8.6.1.post1", "9.0.1", "10.3.0", "10.16.1.11", "11.0.0.114", "11.4.0.106"]
)
def test_versions_that_are_taken(version):
    assert refusal_of_version(version) == ""


@pytest.mark.parametrize("version", ["7.2.1", "8.2.5", "8.5.3", "12.0.0", "99.0.0"])
def test_versions_that_are_not(version):
    assert refusal_of_version(version) == f"tensorrt {version} is installed; supported are 8.6 to 11"
    with pytest.raises(UsageError, match=r"supported are 8\.6 to 11") as caught:
        plan_build(version, "fp16")
    assert caught.value.next_step == 'pip install "tsexport[tensorrt]"'


def test_a_version_that_is_none():
    assert short_version("10.3.0.post1") == "10.3"
    with pytest.raises(UsageError, match=r"TensorRT says its version is 'unknown'; expected a number such as 10\.3\.0"):
        short_version("unknown")
    assert refusal_of_version("unknown").startswith("TensorRT says its version is 'unknown'")


# --- flags -----------------------------------------------------------------------------------------------------------

BEFORE, TYPED, NO_FLAG = ("EXPLICIT_BATCH",), ("EXPLICIT_BATCH", "STRONGLY_TYPED"), ("STRONGLY_TYPED",)
PLANS = {
    ("8.6.1", "fp32"): BuildPlan(BEFORE, (), ("TF32",), holds_fp32=False),
    ("8.6.1", "fp16"): BuildPlan(BEFORE, ("FP16", "OBEY_PRECISION_CONSTRAINTS"), (), holds_fp32=True),
    ("8.6.1", "int8"): BuildPlan(BEFORE, ("INT8",), (), holds_fp32=False),
    ("9.3.0", "bf16"): BuildPlan(TYPED, (), (), holds_fp32=False),
    ("10.3.0", "fp32"): BuildPlan(NO_FLAG, (), ("TF32",), holds_fp32=False),
    ("10.3.0", "fp16"): BuildPlan(NO_FLAG, (), (), holds_fp32=False),
    ("10.3.0", "int8"): BuildPlan(NO_FLAG, (), (), holds_fp32=False),
    ("11.4.0.106", "bf16"): BuildPlan(NO_FLAG, (), (), holds_fp32=False),
    ("11.4.0.106", "fp32"): BuildPlan(NO_FLAG, (), ("TF32",), holds_fp32=False),
}


@pytest.mark.parametrize(("version", "precision"), PLANS)
def test_flags_of_each_version(version, precision):
    plan = plan_build(version, precision)
    assert plan == PLANS[version, precision]
    assert plan.strongly_typed == (not version.startswith("8"))
    assert not (plan.strongly_typed and plan.set), "a strongly typed network allows no flag for a precision"


def test_bf16_before_9():
    with pytest.raises(
        UnsupportedError, match=r"TensorRT 8\.6 does not compute in bf16; that begins with 9\.0"
    ) as caught:
        plan_build("8.6.1", "bf16")
    assert caught.value.next_step == "use the fp16 artifact, or a later TensorRT"


# --- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_is_tuned_for_the_first_batch_and_ends_at_the_largest():
    assert plan_profile((X, IDS, GRID), (4, 1, 8)) == (
        ProfileRow("x", (1, 128, 8), (4, 128, 8), (8, 128, 8)),
        ProfileRow("ids", (1, 2), (4, 2), (8, 2)),
    )


def test_a_profile_is_said_as_trtexec_says_it():
    assert list(map(str, plan_profile((X, IDS), (4, 1, 8)))) == ["x 1x128x8 4x128x8 8x128x8", "ids 1x2 4x2 8x2"]


def test_a_frozen_batch_has_no_profile():
    assert plan_profile((GRID, TensorSpec("y", "float32", (2, 3))), (1,)) == ()


@pytest.mark.parametrize("batches", [(), (0,), (4, -1)])
def test_batches_that_are_none(batches):
    with pytest.raises(UsageError, match=r"batches are \[.*\]; needed is at least one, and whole numbers from 1 on"):
        plan_profile((X,), batches)


@given(batches=st.lists(st.integers(1, 512), min_size=1, max_size=5), met=st.integers(1, 4096))
def test_a_batch_beyond_the_profile_gets_one_that_holds_it(batches, met):
    wider = batches_with(batches, met)
    (row,) = plan_profile((X,), wider)
    assert row.smallest[0] == 1
    assert row.best[0] == met
    assert row.best[0] <= row.largest[0] < 2 * max(met, *batches)
    assert row.largest[0] >= max(batches)


def test_growing_batches_cost_few_engines():
    covered, engines = DEFAULT_TENSORRT_BATCHES, 1
    for batch in range(1, 1025):
        if batch > max(covered):
            covered, engines = batches_with(DEFAULT_TENSORRT_BATCHES, batch), engines + 1
    assert engines == 8  # 8, 16, 32, ..., 1024


def test_workspace():
    assert workspace_bytes(8 * 10**9) == 2 * 10**9
    assert workspace_bytes(141 * 10**9) == MOST_WORKSPACE_BYTES == 4 * 1024**3


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "data_type", "expected"),
    [
        *(("float32", "FLOAT", "float32"), ("float16", "HALF", "float16"), ("int64", "INT64", "int64")),
        *(("int64", "INT32", "int32"), ("int32", "INT32", "int32"), ("bool", "BOOL", "bool")),
        *(("int8", "INT8", "int8"), ("uint8", "UINT8", "uint8")),
    ],
)
def test_types_on_the_device(dtype, data_type, expected):
    assert device_dtype(TensorSpec("x", dtype, ("batch",)), data_type) == expected


@pytest.mark.parametrize(("dtype", "data_type"), [("float32", "HALF"), ("float32", "BF16"), ("int32", "INT64")])
def test_types_that_do_not_fit(dtype, data_type):
    with pytest.raises(UnsupportedError) as caught:
        device_dtype(TensorSpec("x", dtype, ("batch",)), data_type)
    assert caught.value.message == (
        f"the engine has 'x' as {data_type}, and the artifact as {dtype}; allowed are the same type, and INT32 for "
        "int64"
    )
    assert caught.value.next_step == "build the engine again of this artifact's ONNX file"


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6))
def test_int64_is_narrowed(values):
    narrowed = to_device("ids", np.array(values, np.int64), "int32")
    assert narrowed.dtype == np.int32
    assert narrowed.tolist() == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
def test_int64_that_does_not_fit_is_refused_and_never_wrapped(values):
    assume(min(values) < -(2**31) or max(values) >= 2**31)
    with pytest.raises(FeedError) as caught:
        to_device("ids", np.array(values, np.int64), "int32")
    assert caught.value.message == (
        f"input 'ids' holds {min(values)} to {max(values)}; this version of TensorRT computes int64 as INT32, "
        "which holds -2147483648 to 2147483647"
    )
    assert caught.value.next_step == "give smaller values, or use TensorRT 10 or later"


def test_feeds_are_contiguous_and_keep_their_shape():
    strided = np.zeros((4, 6), np.float32)[:, ::2]
    assert to_device("x", strided, "float32").flags.c_contiguous
    assert to_device("scale", np.array(2.0, np.float32), "float32").shape == ()
    assert to_device("n", np.array(2), "int32").shape == ()


# --- what the parser says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (("no importer\n for Det", 4, "/head/Det", "Det"), "node /head/Det (Det): no importer for Det"),
        (("Plugin not found", 3, "", "Foo"), "node 3 (Foo): Plugin not found"),
        (("In node 12 with name: /a", 12, "", ""), "node number 12: In node 12 with name: /a"),
        (("failed to open file", -1, "", ""), "failed to open file"),
        (("", 2, "/a", ""), "node /a (unknown operator): no reason given"),
    ],
)
def test_an_error_of_the_parser_names_its_node(error, expected):
    assert describe_node_error(*error) == expected
