"""Torch on a GPU: sessions on the CPU's stand-in for all but the capture, and on the GPU where there is one.

The fixtures stand here, so that the file runs alone on a machine that has a GPU and little else.
"""

import importlib.metadata
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsexport.errors import FeedError, UsageError
from tsexport.runtimes import registry
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs, relative_rms
from tsexport.runtimes.cuda_build import cuda_obstacle
from tsexport.runtimes.cuda_graphs import DeviceCall
from tsexport.runtimes.cuda_precision import narrowed
from tsexport.runtimes.torch_cuda import TorchCudaSession, compiled, module_session
from tsexport.types import Artifact, TensorSpec, random_feeds

INPUTS = (TensorSpec("x", "float32", ("batch", 6)), TensorSpec("ids", "int64", ("batch", 2)))
OUTPUTS = (TensorSpec("y", "float32", ("batch", 5)), TensorSpec("z", "float32", ("batch", 5)))
ONE = (TensorSpec("x", "float32", ("batch", 512)),)
OBSTACLE = cuda_obstacle()
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)]),
]
ON_GPU = DEVICES[1].marks


def on_gpu(test):
    """Mark a test that needs a GPU."""
    for mark in ON_GPU:
        test = mark(test)
    return test


class Small(torch.nn.Module):
    """x [batch, 6], ids [batch, 2] -> y [batch, 5], z [batch, 5]."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = torch.nn.Linear(6, 5), torch.nn.Embedding(3, 5)

    def forward(self, x, ids):
        return torch.tanh(self.linear(x)), self.table(ids).mean(1)


class Choosing(torch.nn.Module):
    """Chooses by a value that the host has to read, which no graph can."""

    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1


@pytest.fixture
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Small().eval().requires_grad_(False)


def answer(module, feeds):
    """Return the module's answers on the CPU."""
    y, z = module(*(torch.from_numpy(array) for array in feeds.values()))
    return {"y": y.numpy(), "z": z.numpy()}


def traced(module, path, precision="fp32"):
    """Return a module as a TorchScript artifact."""
    feeds = random_feeds(INPUTS, 2, 0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.trace(module, tuple(torch.from_numpy(a) for a in feeds.values())).save(str(path))
    return Artifact(
        path.stem, path, "torchscript", precision, INPUTS, OUTPUTS, (path,), "", path.stat().st_size,
    )  # fmt: skip


def assert_same(expected, actual, tolerance="fp32-export"):
    found = compare_outputs(expected, actual, TOLERANCES[tolerance])
    assert all(one.passed for one in found), found


@pytest.mark.parametrize("graphed", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_a_file_at_every_batch(small, tmp_path, device, graphed):
    """More sizes than get buffers of their own, each of them twice."""
    with TorchCudaSession(traced(small, tmp_path / "small.pt"), 1, device=device, graphed=graphed) as session:
        for batch in (1, 2, 3, 5, 7, 7, 5, 3, 2, 1):
            feeds = random_feeds(INPUTS, batch, batch)
            assert_same(answer(small, feeds), session.run(feeds))
        assert session.specialised_batches == (1, 2, 3, 5)
        assert session.refusals() == {}
        assert (session.device_call(2).graph is not None) == (graphed and device == "cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_answers_belong_to_the_caller(small, tmp_path, device):
    with TorchCudaSession(traced(small, tmp_path / "small.pt"), 1, device=device) as session:
        first, second = random_feeds(INPUTS, 2, 1), random_feeds(INPUTS, 2, 2)
        kept = session.run(first)
        before = {name: array.copy() for name, array in kept.items()}
        session.run(second)
        assert_same(before, kept, "repeat")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_narrow_file(small, tmp_path, device, precision):
    """fp32 outside, narrow inside: the answers differ from fp32's, and by no more than the format's rounding."""
    feeds = random_feeds(INPUTS, 64, 3)
    with TorchCudaSession(
        traced(narrowed(small, precision), tmp_path / "a.pt", precision), 1, device=device
    ) as session:
        answers = session.run(feeds)
    bits = {"fp16": 11, "bf16": 8}[precision]
    for name, values in answer(small, feeds).items():
        assert answers[name].dtype == np.float32
        assert 2.0 ** -(bits + 4) < relative_rms(values, answers[name]) < 2.0 ** -(bits - 3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_module_as_it_is(small, device):
    with module_session(small, "small", INPUTS, OUTPUTS, "fp32", device=device, first_batch=4) as session:
        assert session.specialised_batches == (4,)
        feeds = random_feeds(INPUTS, 4, 0)
        assert_same(answer(small.cpu(), feeds), session.run(feeds))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_module(small, device):
    feeds = random_feeds(INPUTS, 3, 0)
    expected = answer(small, feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, of what it imports
        session = module_session(compiled(small), "small", INPUTS, OUTPUTS, "fp32", device=device, first_batch=3)
        with session:
            assert_same(expected, session.run(feeds))
            assert (session.device_call(3).graph is not None) == (device == "cuda")


def test_feeds_are_checked_and_a_closed_session_refuses(small, tmp_path):
    session = TorchCudaSession(traced(small, tmp_path / "small.pt"), 1, device="cpu")
    with pytest.raises(FeedError, match="missing input 'ids'"):
        session.run({"x": np.zeros((1, 6), np.float32)})
    session.close()
    with pytest.raises(UsageError, match="the session of small is closed"):
        session.run(random_feeds(INPUTS, 1, 0))


def test_a_damaged_file(tmp_path):
    path = tmp_path / "small.pt"
    path.write_bytes(b"no archive")
    artifact = Artifact("small", path, "torchscript", "fp32", INPUTS, OUTPUTS, (path,), "", 10)
    with pytest.raises(UsageError, match=r"torch-cuda cannot load .*small\.pt"):
        TorchCudaSession(artifact, 1, device="cpu")


def test_other_outputs_than_said(small, tmp_path):
    artifact = replace(traced(small, tmp_path / "small.pt"), outputs=OUTPUTS[:1])
    with pytest.raises(UsageError, match=r"small returns 2 tensors; expected y float32\[batch, 5\]"):
        TorchCudaSession(artifact, 1, device="cpu")
    module = torch.nn.Identity()
    module.forward = lambda x: "text"
    with pytest.raises(UsageError, match="text returns something else than tensors, or a tuple or dict of them"):
        module_session(module, "text", ONE, ONE, "fp32", device="cpu")


def test_a_dict_is_read_by_names(small):
    module = torch.nn.Identity()
    module.forward = lambda x: {"b": x + 1, "a": x}
    outputs = (TensorSpec("a", "float32", ("batch", 512)), TensorSpec("b", "float32", ("batch", 512)))
    feeds = random_feeds(ONE, 2, 0)
    with module_session(module, "dict", ONE, outputs, "fp32", device="cpu") as session:
        assert_same({"a": feeds["x"], "b": feeds["x"] + 1}, session.run(feeds), "repeat")


@on_gpu
def test_what_cannot_be_captured_runs_and_says_why():
    example = torch.ones(1, 512, device="cuda")
    call = DeviceCall(Choosing(), [example], lambda value: (value,), graphed=True)
    assert call.graph is None
    assert "captur" in call.refusal
    call.inputs[0].fill_(-1.0)
    assert float(call.launch()[0].sum()) == -1024.0
    with module_session(Choosing(), "choosing", ONE, ONE, "fp32") as session:
        assert list(session.refusals()) == [1]


@on_gpu
def test_fp32_is_no_tf32():
    """TF32 keeps 11 bits, and would be wrong by 2^-12 or so; fp32's sums of 512 products are by less than 2^-20."""
    feeds = random_feeds(ONE, 64, 0)
    product, convolution = torch.nn.Linear(512, 512, bias=False), torch.nn.Conv1d(1, 8, 65, bias=False)
    by_name = {"product": product, "convolution": torch.nn.Sequential(torch.nn.Unflatten(1, (1, 512)), convolution)}
    for name, module in by_name.items():
        module.eval().requires_grad_(False)
        exact = module.double()(torch.from_numpy(feeds["x"]).double()).numpy()
        outputs = (TensorSpec("y", "float32", ("batch", *exact.shape[1:])),)
        with module_session(module.float(), name, ONE, outputs, "fp32", first_batch=64) as session:
            assert relative_rms(exact, session.run(feeds)["y"].astype(np.float64)) < 2.0**-19


@on_gpu
def test_times_of_a_call(small):
    with module_session(small, "small", INPUTS, OUTPUTS, "fp32", first_batch=8) as session:
        times = [session.device_call(8).device_ms() for _ in range(20)]
    assert all(np.isfinite(times))
    assert min(times) > 0


@on_gpu
def test_the_registry_loads_it(small, tmp_path):
    status = registry.get_runtime("torch-cuda").check()
    assert status.available
    assert status.version == importlib.metadata.version("torch")
    feeds = random_feeds(INPUTS, 3, 0)
    with registry.load(traced(small, tmp_path / "small.pt"), "torch-cuda", threads=1) as session:
        assert_same(answer(small, feeds), session.run(feeds))
