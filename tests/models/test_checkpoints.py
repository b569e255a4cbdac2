"""Checkpoints: wrappings that are recognised, and everything that is refused."""

import pickle
import traceback
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tsexport.errors import CheckpointError
from tsexport.models.checkpoints import read_checkpoint
from tsexport.types import file_sha256

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def save(path, content):
    torch.save(content, path)
    return path


def prefixed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "wrapping"),
    [
        (STATE, ()),
        (OrderedDict(STATE), ()),
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, ("state_dict",)),
        ({"model_state_dict": STATE, "loss": 0.5}, ("model_state_dict",)),
        ({"model": STATE}, ("model",)),
        ({"model": {"state_dict": STATE}}, ("model", "state_dict")),
        (prefixed("module."), ("module.",)),
        (prefixed("_orig_mod."), ("_orig_mod.",)),
        ({"state_dict": prefixed("model.module.")}, ("state_dict", "model.", "module.")),
    ],
)
def test_wrappings_are_taken_off_and_named(tmp_path, content, wrapping):
    checkpoint = read_checkpoint(save(tmp_path / "a.pth", content))
    assert checkpoint.wrapping == wrapping
    assert list(checkpoint.state) == list(STATE)
    assert all(torch.equal(checkpoint.state[name], STATE[name]) for name in STATE)
    assert checkpoint.sha256 == file_sha256(tmp_path / "a.pth")


@given(layers=st.lists(st.sampled_from(["state_dict", "model_state_dict", "model"]), max_size=3),
       prefixes=st.lists(st.sampled_from(["module.", "model.", "_orig_mod."]), max_size=3))  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nesting_is_undone(tmp_path, layers, prefixes):
    content = prefixed("".join(prefixes))
    for key in reversed(layers):
        content = {key: content}
    checkpoint = read_checkpoint(save(tmp_path / "a.pt", content))
    assert checkpoint.wrapping == (*layers, *prefixes)
    assert list(checkpoint.state) == list(STATE)


def test_a_prefix_of_only_some_names_stays(tmp_path):
    state = {**prefixed("module."), "head": torch.ones(1)}
    assert read_checkpoint(save(tmp_path / "a.pt", state)).wrapping == ()


def test_safetensors(tmp_path):
    save_file(prefixed("model."), tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.wrapping == ("model.",)
    assert torch.equal(checkpoint.state["layer.weight"], STATE["layer.weight"])


class Exploit:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code was run')",))


@pytest.mark.parametrize(
    ("content", "name"),
    [({"state_dict": STATE, "hyper": Exploit()}, "exec"), (nn.Linear(2, 2), "torch.nn.modules.linear.Linear")],
)
def test_a_pickle_that_holds_code_is_refused_by_name(tmp_path, content, name):
    with pytest.raises(CheckpointError, match=f"holds code, which is not run: its pickle asks for .*{name}") as caught:
        read_checkpoint(save(tmp_path / "a.pth", content))
    assert "safetensors.torch.save_file" in caught.value.next_step
    assert not advises_unsafe_loading(caught.value)


def advises_unsafe_loading(error):
    """Whether what is printed of an error, with what it came from, is torch's advice to load a file with its code."""
    return "weights_only" in "".join(traceback.format_exception(error))


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError, match="damaged or not a torch checkpoint") as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert not advises_unsafe_loading(caught.value)


def test_a_damaged_pickle_is_told_without_torchs_advice(tmp_path):
    path = save(tmp_path / "a.pth", STATE)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"))
    with pytest.raises(CheckpointError, match=r"its pickle asks for torch\._utils._rebuild_tensor_vX"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02\xff" if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged or not a torch checkpoint; allowed is") as caught:
        read_checkpoint(path)
    assert caught.value.next_step.startswith("Download or save it again; weights in a .safetensors file")
    assert not advises_unsafe_loading(caught.value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads a file of Linux that gives no bytes")
def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.pth").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"the checkpoint .*a\.pth cannot be read: Input/output error"):
        read_checkpoint(tmp_path / "a.pth")


def test_files_that_are_no_checkpoints(tmp_path):
    cases = {
        "empty.pth": (b"", "is empty"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        "text.pt": (b"hello, this is no checkpoint", "damaged or not a torch checkpoint"),
        "text.safetensors": (b"hello, this is no checkpoint", "not a readable safetensors"),
        "weights.ckpt": (b"x", r"allowed are \.pth, \.pt, \.safetensors"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, suffix, part):
    path = tmp_path / f"a{suffix}"
    save_file(STATE, path) if suffix == ".safetensors" else save(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"damaged|not a readable"):
        read_checkpoint(path)


@given(position=st.integers(0, 2000), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_read_or_refused_but_never_crashes(tmp_path, position, value):
    content = bytearray(save(tmp_path / "a.pth", STATE).read_bytes())
    content[position % len(content)] = value
    (tmp_path / "a.pth").write_bytes(content)
    state, refusal = {}, None
    try:
        state = read_checkpoint(tmp_path / "a.pth").state
    except CheckpointError as error:
        refusal = error
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert refusal is None or not advises_unsafe_loading(refusal)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not named tensors"),
        (torch.ones(2), "holds a Tensor, not named tensors"),
        ({}, "holds no tensors at all"),
        ({"weights": {"a": torch.ones(1)}}, "'weights', a dict, where named tensors are expected; recognised"),
        ({**STATE, "epoch": 3}, "'epoch', a int"),
        ({"a": torch.ones(2).to_sparse()}, "a in .* is a quantized or sparse tensor"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(tmp_path / "a.pt", content))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, bad):
    state = {**STATE, "layer.bias": torch.tensor([1.0, bad])}
    with pytest.raises(CheckpointError, match=r"layer.bias in .* has 1 of 2 values that are NaN or infinite"):
        read_checkpoint(save(tmp_path / "a.pt", state))


def test_a_torchscript_program_is_not_a_checkpoint(tmp_path, save_program):
    path = save_program(tmp_path / "a.pt", nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.raises(CheckpointError, match="whole TorchScript program") as caught:
        read_checkpoint(path)
    assert "tsexport build a.pt" in caught.value.next_step
