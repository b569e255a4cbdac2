"""Every runtime on every format it loads: parity, batches, threads, and ownership of outputs."""

import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tsexport.errors import FeedError, UsageError
from tsexport.runtimes import registry
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.runtimes.sessions import SPECIALISED_BATCHES, BatchSpecialised
from tsexport.types import Session, TensorSpec, files_sha256, random_feeds

ROWS = (*registry.RUNTIMES, *registry.GPU_RUNTIMES)
CASES = [(row.name, artifact_format) for row in ROWS for artifact_format in row.formats]
EVERY = pytest.mark.parametrize(("runtime", "artifact_format"), CASES, ids=["-".join(case) for case in CASES])
ONNX_RUNTIMES = pytest.mark.parametrize("runtime", [name for name, form in CASES if form == "onnx"])
X = (TensorSpec("x", "float32", ("batch", 4)),)
Y = (TensorSpec("y", "float32", ("batch", 4)),)
IR17 = '<ir_version: 8, opset_import: ["" : 17]>'


def assert_same(expected, actual):
    comparisons = compare_outputs(expected, actual, TOLERANCES["fp32-export"])
    assert len(comparisons) == len(expected)
    assert all(c.passed for c in comparisons), comparisons


@EVERY
def test_parity_at_every_batch(small, small_feeds, runtime, artifact_format):
    with registry.load(small.artifacts[artifact_format], runtime, threads=1) as session:
        assert isinstance(session, Session)
        for batch in [*range(9, 0, -1), *range(1, 10)]:  # more sizes than are specialised, each of them twice
            feeds = small_feeds(batch)
            outputs = session.run(feeds)
            assert list(outputs) == ["y", "z"]
            assert_same(small.expected(feeds), outputs)
        if isinstance(session, BatchSpecialised):
            assert session.specialised_batches == (1, 9, 8, 7)
            assert len(session.specialised_batches) == SPECIALISED_BATCHES


@EVERY
def test_load_specialises_only_batch_1(small, runtime, artifact_format):
    with registry.load(small.artifacts[artifact_format], runtime, threads=1) as session:
        if isinstance(session, BatchSpecialised):
            assert session.specialised_batches == (1,)


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize(
    ("runtime", "artifact_format"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("tract", "onnx")]
)
def test_no_other_batch_is_compiled_from_files_that_were_not_loaded(
    small, small_feeds, tmp_path, runtime, artifact_format, change
):
    """A bundle that is replaced in its place would otherwise answer batch 1 by the old model, and 3 by the new one."""
    artifact = small.artifacts[artifact_format]
    copies = tuple(Path(shutil.copy(file, tmp_path)) for file in artifact.files)
    with registry.load(replace(artifact, path=copies[0], files=copies), runtime, threads=1) as session:
        session.run(small_feeds(2))
        copies[-1].unlink()
        if change == "replaced":
            shutil.copy(artifact.files[-1], tmp_path)
        assert_same(small.expected(small_feeds(1)), session.run(small_feeds(1)))
        assert_same(small.expected(small_feeds(2)), session.run(small_feeds(2)))
        with pytest.raises(
            UsageError, match="are not those that were loaded: they were changed, replaced or"
        ) as caught:
            session.run(small_feeds(3))
        assert caught.value.next_step == "load it again"


def test_a_large_artifact_gets_one_specialised_model(small, small_feeds):
    heavy = replace(small.artifacts["onnx"], size_bytes=2**40)
    with registry.load(heavy, "onnxruntime", threads=1) as session:
        for batch in (3, 2, 1):
            assert_same(small.expected(small_feeds(batch)), session.run(small_feeds(batch)))
        assert session.specialised_batches == (1,)


def test_an_artifact_that_gains_nothing_from_a_fixed_batch_has_one_model(small, small_feeds):
    artifact = replace(small.artifacts["onnx"], options=(("fix_batch", "no"),))
    with registry.load(artifact, "onnxruntime", threads=1) as session:
        for batch in (1, 3, 2):
            assert_same(small.expected(small_feeds(batch)), session.run(small_feeds(batch)))
        assert session.specialised_batches == ()


def test_tract_takes_outputs_by_place_where_nodes_have_names(onnx_artifact):
    text = f"{IR17} g (float[batch, 4] x) => (float[batch, 4] y) {{ y = Relu(x) }}"
    artifact = onnx_artifact(text, X, Y)
    model = onnx.load(artifact.path)
    model.graph.node[0].name = "/head/Relu"
    onnx.save(model, artifact.path)
    with registry.load(artifact, "tract", threads=1) as session:
        feeds = {"x": np.float32([[-1, 0, 1, 2]])}
        assert_same({"y": np.float32([[0, 0, 1, 2]])}, session.run(feeds))


def test_tract_runs_an_lstm_at_every_batch(onnx_artifact):
    """As torch exports two layers, tract can bind the batch only to 1, and runs no other batch unbound."""
    text = f"""{IR17} g (float[batch, 6, 4] x) => (float[batch, 8] y) {{
        steps = Transpose<perm = [1, 0, 2]>(x)
        count = Shape<start = 0, end = 1>(x)
        shape = Concat<axis = 0>(two, count, eight)
        states = ConstantOfShape<value = float[1] {{0.0}}>(shape)
        state = Slice(states, zero, one, zero)
        every, last, cell = LSTM<hidden_size = 8>(steps, w, r, b, , state, state)
        steps_of_one = Squeeze(every, one)
        y = Gather<axis = 0>(steps_of_one, minus)
    }}"""
    generator = np.random.default_rng(3)
    shapes = {"w": (1, 32, 4), "r": (1, 32, 8), "b": (1, 64)}
    weights = {name: generator.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    numbers = {name: np.array([value]) for name, value in {"zero": 0, "one": 1, "two": 2, "eight": 8}.items()}
    numbers["minus"] = np.array(-1)
    inputs, outputs = (
        (TensorSpec("x", "float32", ("batch", 6, 4)),),
        (TensorSpec("y", "float32", ("batch", 8)),),
    )
    artifact = onnx_artifact(text, inputs, outputs, **weights, **numbers)
    with (
        registry.load(artifact, "tract", threads=1) as session,
        registry.load(artifact, "onnxruntime", threads=1) as reference,
    ):
        for batch in (1, *range(2, SPECIALISED_BATCHES + 4), 2):
            feeds = random_feeds(inputs, batch, seed=batch)
            assert_same(reference.run(feeds), session.run(feeds))


@EVERY
def test_sessions_of_different_threads_in_one_process(small, small_feeds, runtime, artifact_format):
    artifact, feeds = small.artifacts[artifact_format], small_feeds(3)
    with (
        registry.load(artifact, runtime, threads=1) as one,
        registry.load(artifact, runtime, threads=2) as two,
    ):
        for session in (one, two, one):
            assert_same(small.expected(feeds), session.run(feeds))
        assert (one.threads, two.threads) == (1, 1 if runtime == "tract" else 2)


def test_torch_threads_are_those_of_the_session_that_ran(small, small_feeds):
    import torch

    artifact = small.artifacts["torchscript"]
    with registry.load(artifact, "torchscript", threads=1) as one, registry.load(artifact, "torchscript", threads=2):
        assert torch.get_num_threads() == 2
        one.run(small_feeds(1))
        assert torch.get_num_threads() == 1


def test_onnxruntime_and_openvino_use_the_threads_asked_for(small):
    from tsexport.runtimes.onnxruntime import session_options
    from tsexport.runtimes.openvino import properties

    artifact = small.artifacts["onnx"]
    options = session_options(artifact, threads=3, batch=1)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert properties(artifact, threads=3)["INFERENCE_NUM_THREADS"] == "3"


@EVERY
def test_called_from_several_threads(small, small_feeds, runtime, artifact_format):
    answers: dict[int, dict[str, np.ndarray]] = {}
    with registry.load(small.artifacts[artifact_format], runtime, threads=1) as session:

        def work(number: int) -> None:
            for _ in range(5):
                answers[number] = session.run(small_feeds(number % 6 + 1))

        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(answers) == 8
    for number, outputs in answers.items():
        assert_same(small.expected(small_feeds(number % 6 + 1)), outputs)


@EVERY
def test_outputs_do_not_change_in_later_runs(small, small_feeds, runtime, artifact_format):
    with registry.load(small.artifacts[artifact_format], runtime, threads=1) as session:
        first = session.run(small_feeds(2))
        kept = {name: array.copy() for name, array in first.items()}
        other = {name: array[::-1].copy() for name, array in small_feeds(2).items()}
        second = session.run(other)
        for array in second.values():
            array[...] = np.nan  # nor does writing into an answer reach the session or an earlier answer
        third = session.run(small_feeds(2))
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(third[name], array)


@ONNX_RUNTIMES
def test_an_output_that_is_the_input_is_a_copy(onnx_artifact, runtime):
    artifact = onnx_artifact(f"{IR17} g (float[batch, 4] x) => (float[batch, 4] y) {{ y = Identity(x) }}", X, Y)
    x = np.ones((2, 4), np.float32)
    with registry.load(artifact, runtime, threads=1) as session:
        session.run({"x": x})["y"][...] = 5.0
        assert (session.run({"x": x})["y"] == 1.0).all()
    assert (x == 1.0).all()


@ONNX_RUNTIMES
def test_an_output_that_is_a_weight_is_a_copy(onnx_artifact, runtime):
    text = f"{IR17} g (float[batch, 4] x) => (float[batch, 4] y, float[3] c) {{ y = Tanh(x) c = Identity(w) }}"
    outputs = (*Y, TensorSpec("c", "float32", (3,)))
    artifact = onnx_artifact(text, X, outputs, w=np.ones(3, np.float32))
    feeds = {"x": np.ones((2, 4), np.float32)}
    with registry.load(artifact, runtime, threads=1) as session:
        session.run(feeds)["c"][...] = 5.0
        assert (session.run(feeds)["c"] == 1.0).all()


def test_a_torchscript_output_that_is_the_input_or_a_weight_is_a_copy(tmp_path, small):
    import torch

    class Leaky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 4))

        def forward(self, x):
            return x, self.weight

    artifact = _save_torchscript(Leaky(), torch.zeros(1, 4), tmp_path, small.artifacts["torchscript"])
    artifact = replace(artifact, inputs=X, outputs=(*Y, TensorSpec("weight", "float32", (1, 4))))
    x = np.ones((1, 4), np.float32)
    with registry.load(artifact, "torchscript", threads=1) as session:
        for array in session.run({"x": x}).values():
            array[...] = 5.0
        assert all((array == 1.0).all() for array in session.run({"x": x}).values())
    assert (x == 1.0).all()


def _save_torchscript(module, example, folder, like):
    import warnings

    import torch

    with warnings.catch_warnings(), torch.no_grad():
        # torch calls its own format deprecated; users ask for it.
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", DeprecationWarning)
        torch.jit.trace(module.eval(), example, strict=False).save(folder / "module.pt")
    files = (folder / "module.pt",)
    return replace(like, path=files[0], files=files, sha256=files_sha256(files))


def test_torchscript_may_return_a_dict(tmp_path, small, small_feeds):
    import torch

    class Named(torch.nn.Module):
        def forward(self, x):
            return {"b": x + 1, "a": x * 2}

    like = small.artifacts["torchscript"]
    saved = _save_torchscript(Named(), torch.zeros(2, 4), tmp_path, like)
    artifact = replace(saved, inputs=X, outputs=(replace(Y[0], name="a"), replace(Y[0], name="b")))
    with registry.load(artifact, "torchscript", threads=1) as session:
        outputs = session.run({"x": np.full((3, 4), 5.0, np.float32)})
    assert {name: float(array.max()) for name, array in outputs.items()} == {"a": 10.0, "b": 6.0}
    with pytest.raises(UsageError, match=r"has no output 'c'; its outputs are b, a"):
        registry.load(replace(artifact, outputs=(replace(Y[0], name="c"),)), "torchscript", threads=1)


def test_torchscript_with_another_number_of_outputs(small):
    artifact = replace(small.artifacts["torchscript"], outputs=Y)
    with pytest.raises(UsageError, match=r"returns 2 tensors; expected y float32\[batch, 4\]"):
        registry.load(artifact, "torchscript", threads=1)


def test_torchscript_that_returns_no_tensors(tmp_path, small):
    import torch

    class Nested(torch.nn.Module):
        def forward(self, x):
            return x, (x, x)

    artifact = _save_torchscript(Nested(), torch.zeros(2, 4), tmp_path, small.artifacts["torchscript"])
    with pytest.raises(UsageError, match="returns something else than tensors"):
        registry.load(replace(artifact, inputs=X, outputs=Y), "torchscript", threads=1)


@EVERY
def test_feeds_of_any_layout(small, small_feeds, runtime, artifact_format):
    feeds = small_feeds(4)
    strided = np.zeros((4, 6, 8), np.float32)[:, ::2, ::-2]
    strided[...] = feeds["x"]
    read_only = feeds["ids"].copy()
    read_only.flags.writeable = False
    assert not strided.flags.c_contiguous
    with registry.load(small.artifacts[artifact_format], runtime, threads=1) as session:
        assert_same(small.expected(feeds), session.run({"ids": read_only, "x": strided}))
    np.testing.assert_array_equal(strided, feeds["x"])


@ONNX_RUNTIMES
def test_a_model_without_a_batch(onnx_artifact, runtime):
    artifact = onnx_artifact(
        f"{IR17} g (float[2, 4] x) => (float[2, 4] y) {{ y = Tanh(x) }}",
        (TensorSpec("x", "float32", (2, 4)),),
        (TensorSpec("y", "float32", (2, 4)),),
    )
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    with registry.load(artifact, runtime, threads=1) as session:
        assert_same({"y": np.tanh(x)}, session.run({"x": x}))
        with pytest.raises(FeedError, match="dimension 0 must be 2"):
            session.run({"x": x[:1]})


@ONNX_RUNTIMES
def test_the_file_may_name_its_batch_otherwise(onnx_artifact, runtime):
    text = f"{IR17} g (float[N, 4] x) => (float[N, 4] y) <float[N, 4] h> {{ h = Relu(x) y = Tanh(h) }}"
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    with registry.load(onnx_artifact(text, X, Y), runtime, threads=1) as session:
        assert_same({"y": np.tanh(x.clip(0))}, session.run({"x": x}))


# --- imports ---------------------------------------------------------------------------------------------------------

HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "tract", "tensorrt", "pyarrow"}


@pytest.mark.parametrize("row", registry.RUNTIMES, ids=lambda row: row.name)
def test_a_runtime_imports_no_other(row):
    module = row.session.partition(":")[0]
    assert _heavy_imports(f"import {module}") == {row.package}


def test_the_registry_imports_no_runtime():
    assert _heavy_imports("from tsexport.runtimes import registry; registry.list_statuses()") == set()
    assert _heavy_imports("import tsexport.runtimes.comparison, tsexport.runtimes.sessions") == set()


def _heavy_imports(code: str) -> set[str]:
    """Return which heavy packages a fresh interpreter has imported after running code."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return HEAVY & set(out.stdout.split())
