"""`.pt2` programs: what is read from them, and what is refused before torch opens them."""

import random
import re
import traceback
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tsexport.errors import UsageError
from tsexport.models.programs import load_torchscript
from tsexport.models.sources import identify, open_source
from tsexport.types import TensorSpec, random_feeds

PARITY_ATOL = 1e-5


def export(path, module, *example, dims=({0: "batch"},)):
    batch = torch.export.Dim("batch")
    named = tuple({i: batch if name == "batch" else torch.export.Dim(name) for i, name in d.items()} for d in dims)
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=named if dims else None), path)
    return str(path)


def open_path(path):
    return open_source(identify(path))


def test_inputs_and_answers(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    opened = open_path(export(tmp_path / "net.pt2", module, torch.randn(2, 4)))
    assert opened.spec.inputs == (TensorSpec("input", "float32", ("batch", 4)),)
    assert opened.spec.outputs == (TensorSpec("output", "float32", ("batch", 3)),)
    assert (opened.spec.name, opened.spec.parameters) == ("net", 15)
    feeds = random_feeds(opened.spec.inputs, 5, 0)
    expected = module(torch.from_numpy(feeds["input"])).detach().numpy()
    np.testing.assert_allclose(opened.run(feeds)["output"], expected, atol=PARITY_ATOL, rtol=0)


def test_fixed_batch_is_explained(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4), dims=())
    with pytest.raises(UsageError, match=r"input input of net.pt2 is \[2, 4\]: its batch is fixed"):
        open_path(path)


def test_other_dynamic_dimensions_are_explained(tmp_path):
    path = export(tmp_path / "net.pt2", nn.ReLU(), torch.randn(2, 4), dims=({0: "batch", 1: "time"},))
    with pytest.raises(UsageError, match="only the first dimension may be dynamic"):
        open_path(path)


class Exploit:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code was run')",))


def rewrite(path, change):
    """Copy an archive, member by member, through `change(name, content)`, which may return None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)
    return path


def test_code_in_example_inputs_is_refused(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))
    torch.save(Exploit(), tmp_path / "bad.pt")
    bad = (tmp_path / "bad.pt").read_bytes()
    rewrite(path, lambda name, content: bad if "sample_inputs" in name else content)
    with pytest.raises(UsageError, match=r"holds code in data/sample_inputs/model.pt, which is not run"):
        open_path(path)


def test_code_in_weights_is_refused(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))
    torch.save(Exploit(), tmp_path / "bad.pt")
    bad = (tmp_path / "bad.pt").read_bytes()

    def change(name, content):
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return bad if name.endswith("weight_0") else content

    rewrite(path, change)
    with pytest.raises(UsageError, match="holds code in data/weights/weight_0"):
        open_path(path)


def test_expressions_that_are_no_arithmetic_are_refused(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))

    def change(name, content):
        if name.endswith("models/model.json"):
            assert b'"expr_str": "' in content
            return content.replace(b'"expr_str": "', b'"expr_str": "__import__(1)+')
        return content

    rewrite(path, change)
    with pytest.raises(UsageError, match=r"not plain arithmetic: .__import__"):
        open_path(path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("data/aotinductor/model/x.so", "compiled or opaque code"),
        ("data/constants/opaque_obj_0", "compiled or opaque code"),
        ("MODELS/model.json", "two members of one name"),
    ],
)
def test_unexpected_members_are_refused(tmp_path, extra, message):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{extra}", b"x")
    with pytest.raises(UsageError, match=message):
        open_path(path)


def test_a_damaged_member_is_told_without_torchs_advice(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))
    rewrite(path, lambda name, content: content[: len(content) // 2] if "sample_inputs" in name else content)
    with pytest.raises(UsageError, match=r"net.pt2 holds a damaged data/sample_inputs/model.pt") as caught:
        open_path(path)
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture(scope="module")
def damaged_program(tmp_path_factory):
    """Give how to write a saved program with some bytes of one member changed, by a seed."""
    path = tmp_path_factory.mktemp("programs") / "damaged.ts"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(1, 3)), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def write(seed):
        places = random.Random(seed)
        chosen = places.choice([name for name, content in members.items() if content])
        changed = bytearray(members[chosen])
        for _ in range(3):
            changed[places.randrange(len(changed))] = places.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | {chosen: bytes(changed)}).items():
                archive.writestr(name, content)
        return path

    return write


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_damaged_torchscript_program_is_read_or_refused_on_one_line(damaged_program, seed):
    path, refusal = damaged_program(seed), None
    try:
        load_torchscript(path)
    except UsageError as error:
        refusal = error
    told = r".*damaged\.ts is not a TorchScript program this torch can load: \S.*"
    assert refusal is None or re.fullmatch(told, refusal.message)
    assert refusal is None or refusal.next_step == "Save it again with torch.jit.save."


def test_older_layout_is_refused(tmp_path):
    path = export(tmp_path / "net.pt2", nn.Linear(4, 3), torch.randn(2, 4))
    rewrite(path, lambda name, content: None if name.endswith("archive_format") else content)
    with pytest.raises(UsageError, match="layout of an older torch"):
        open_path(path)
