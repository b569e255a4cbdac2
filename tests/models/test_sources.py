"""What MODEL may be: registered names, factories, and files; each opened and run."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.errors import CheckpointError, ConfigurationError, FeedError, UsageError
from tsexport.models import linear
from tsexport.models.flat import probe
from tsexport.models.registry import get_entry
from tsexport.models.sources import identify, open_source
from tsexport.types import TensorSpec, random_feeds

X = (TensorSpec("x", "float32", ("batch", 4)),)
PARITY_ATOL = 1e-5
"""The same fp32 weights in another program: another order of sums."""


@pytest.fixture
def odd(factories, monkeypatch):
    """Work from the folder of factories, as a user would."""
    monkeypatch.chdir(factories)


def open_model(model, inputs=(), **options):
    return open_source(identify(model, **options), inputs)


# Registered models


def test_reference_checkpoint_is_used_and_named():
    identity = identify("patchtst-cpu")
    assert identity.is_reference
    assert (identity.kind, identity.name) == ("registered", "patchtst-cpu")
    opened = open_source(identity)
    assert "reference checkpoint that comes with tsexport: patchtst-cpu.safetensors" in opened.notes
    assert opened.checkpoint_sha256 == identity.checkpoint_sha256 is not None
    assert opened.spec.inputs == identity.inputs
    assert opened.spec.parameters == get_entry("patchtst-cpu").parameters
    assert not opened.module.training
    assert not any(p.requires_grad for p in opened.module.parameters())


def test_other_sizes_are_initialised_from_the_seed_and_say_so():
    identity = identify("patchtst-cpu", settings={"layers": "1"}, seed=3)
    assert identity.is_untrained
    opened = open_source(identity)
    assert "weights initialised from seed 3: untrained, accuracy means nothing" in opened.notes
    assert any("untrained" in caveat for caveat in opened.spec.caveats)
    assert opened.spec.config["layers"] == 1
    feeds = random_feeds(opened.spec.inputs, 2, 0)
    again = open_model("patchtst-cpu", settings={"layers": "1"}, seed=3).run(feeds)
    other = open_model("patchtst-cpu", settings={"layers": "1"}, seed=4).run(feeds)
    assert np.array_equal(opened.run(feeds)["forecast"], again["forecast"])
    assert not np.allclose(again["forecast"], other["forecast"])


def test_opening_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    open_model("linear")
    assert torch.equal(torch.rand(1), expected)


def test_users_checkpoint_is_unwrapped_and_loaded(tmp_path):
    state = linear.build(linear.Config()).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pth")
    opened = open_model("linear", checkpoint=tmp_path / "a.pth")
    assert opened.notes == ("checkpoint unwrapped: state_dict, module.",)
    assert torch.equal(opened.module.Linear.weight, state["Linear.weight"])


def test_digest_follows_content(tmp_path):
    torch.save(linear.build(linear.Config()).state_dict(), tmp_path / "a.pth")
    digests = [
        identify("linear").digest,
        identify("linear", seed=1).digest,
        identify("linear", settings={"channels": "3"}).digest,
        identify("linear", checkpoint=tmp_path / "a.pth").digest,
        identify("dlinear").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert identify("linear").digest == digests[0]
    # With a checkpoint the seed changes nothing.
    assert identify("linear", checkpoint=tmp_path / "a.pth", seed=9).digest == digests[3]


def test_options_are_checked_before_anything_is_opened(tmp_path):
    with pytest.raises(ConfigurationError, match="did you mean 'horizon'"):
        identify("linear", settings={"horizn": "3"})
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        identify("linear", checkpoint=tmp_path / "absent.pth")
    with pytest.raises(UsageError, match="did you mean 'dlinear'"):
        identify("dlinera")
    with pytest.raises(UsageError, match="closed API"):
        identify("timegpt")


def test_wrong_feeds_are_refused():
    with pytest.raises(FeedError, match=r"was fed \['x'\]; it takes \['series'\]"):
        open_model("linear").run({"x": np.zeros((1, 336, 7), np.float32)})


# Factories


@pytest.mark.usefixtures("odd")
def test_factory_by_module_name_with_settings():
    opened = open_model("odd:linear", X, settings={"width": "4", "bias": "false", "label": "anything"}, seed=1)
    assert opened.spec.name == "linear"
    assert opened.module.bias is None
    assert [str(spec) for spec in opened.spec.outputs] == ["output float32[batch, 2]"]
    feeds = random_feeds(X, 5, 0)
    expected = feeds["x"] @ opened.module.weight.numpy().T
    np.testing.assert_allclose(opened.run(feeds)["output"], expected, atol=PARITY_ATOL, rtol=0)
    assert opened.notes == ("no --checkpoint: the weights are those that the factory returned",)


def test_factory_by_file(factories):
    opened = open_model(f"{factories / 'm2lines.py'}:fcnn", settings={"size": "8"})
    assert opened.spec.inputs == (TensorSpec("field", "float32", ("batch", 2, 8, 8)),)
    assert opened.spec.outputs == (TensorSpec("output", "float32", ("batch", 1, 8, 8)),)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("dict", ["mean", "spread"]),
        ("namedtuple", ["mean", "spread"]),
        ("nested", ["output", "output_1", "output_2"]),
    ],
)
def test_answers_are_flattened_and_named(kind, names, trace):
    opened = open_model("odd:answers", settings={"kind": kind})
    assert [spec.name for spec in opened.spec.outputs] == names
    feeds = random_feeds(opened.spec.inputs, 3, 0)
    answers = opened.run(feeds)
    assert list(answers) == names
    np.testing.assert_allclose(answers[names[1]], np.exp(answers[names[0]]), rtol=1e-5)
    with torch.no_grad():
        traced = trace(opened.module, torch.zeros(2, 4))(torch.from_numpy(feeds["x"]))
    assert len(traced) == len(names)


@pytest.mark.usefixtures("odd")
def test_a_factory_that_loads_code_is_told_without_torchs_advice(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    told = (
        r"odd:loads failed: it loads a file that holds code, .* its pickle asks for torch\.nn\..*Linear; pass weights"
    )
    with pytest.raises(UsageError, match=told) as caught:
        open_model("odd:loads", settings={"path": str(tmp_path / "whole.pth")})
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("absent_module:make", {}, "no module 'absent_module'"),
        ("absent.py:make", {}, "there is no file absent.py"),
        ("odd:liner", {}, "odd has no 'liner'.*did you mean 'linear'"),
        ("odd:not_a_function", {}, "is a int, not a function"),
        ("odd:wrong_type", {}, "returned a list; a torch.nn.Module is expected"),
        ("odd:raises", {}, r"failed: ValueError: no weights today \(odd.py, line \d+\)"),
        ("odd:linear", {"depth": "3"}, "failed: TypeError: .*depth"),
        ("odd:linear", {}, "the inputs of odd:linear are not known"),
        ("odd:bad_inputs", {}, "tsexport_inputs is "),
        ("odd:answers", {"kind": "random"}, "output differs between two runs"),
        ("odd:answers", {"kind": "fixed"}, "batch of 2 and not with 3: its batch size is fixed"),
        ("odd:answers", {"kind": "time-major"}, r"is \[2, 2\] for a batch of 2 and \[2, 3\] for 3"),
        ("odd:answers", {"kind": "number"}, "returns a float, which is no tensor"),
        (":make", {}, "not of the form module:factory"),
        ("odd:1", {}, "not of the form module:factory"),
    ],
)
def test_wrong_factories_are_explained(model, settings, message):
    with pytest.raises(UsageError, match=message):
        open_model(model, settings=settings)


def test_import_failures_are_explained(tmp_path):
    (tmp_path / "needs.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=r"needs.py failed: No module named 'a_package_nobody_has'"):
        open_model(f"{tmp_path / 'needs.py'}:make")
    with pytest.raises(UsageError, match=r"broken.py failed: ZeroDivisionError: .*\(broken.py, line 1\)"):
        open_model(f"{tmp_path / 'broken.py'}:make")


@pytest.mark.usefixtures("odd")
def test_inputs_that_do_not_fit_are_explained():
    with pytest.raises(UsageError, match=r"does not run on x float32\[batch, 5\]: RuntimeError"):
        open_model("odd:linear", (TensorSpec("x", "float32", ("batch", 5)),))


def test_factory_digest_follows_weights_and_sources(tmp_path):
    (tmp_path / "digest_helper.py").write_text("FACTOR = 1.0\n")
    body = "from torch import nn\nfrom digest_helper import FACTOR\ndef make():\n    return nn.Linear(4, 2)\n"
    (tmp_path / "digest_model.py").write_text(body)
    model = f"{tmp_path / 'digest_model.py'}:make"
    assert identify(model).digest is None
    first = open_model(model, X).digest
    assert open_model(model, X).digest == first
    assert open_model(model, X, seed=1).digest != first
    other = tmp_path / "other"
    other.mkdir()
    (other / "digest_helper_2.py").write_text("FACTOR = 2.0\n")
    (other / "digest_model_2.py").write_text(body.replace("digest_helper", "digest_helper_2"))
    assert open_model(f"{other / 'digest_model_2.py'}:make", X).digest != first


def test_a_factory_whose_imported_file_changed_is_not_built_from_stale_code(tmp_path):
    helper = tmp_path / "stale_helper.py"
    helper.write_text("FACTOR = 1.0\n")
    (tmp_path / "stale_model.py").write_text(
        "from torch import nn\nfrom stale_helper import FACTOR\ndef make():\n    return nn.Linear(4, 2)\n"
    )
    model = f"{tmp_path / 'stale_model.py'}:make"
    first = open_model(model, X).digest
    helper.write_text("FACTOR = 2.0\n")
    with pytest.raises(UsageError, match=r"stale_helper\.py has changed since this Python process imported it"):
        open_model(model, X)
    helper.write_text("FACTOR = 1.0\n")
    assert open_model(model, X).digest == first


def test_factory_checkpoint_must_fit(factories, tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"does not fit .*m2lines.py:fcnn: missing: 0.weight"):
        open_model(f"{factories / 'm2lines.py'}:fcnn", checkpoint=tmp_path / "a.pth")


# Files


def test_torchscript_file(tmp_path, save_program):
    module = nn.Linear(4, 2).eval()
    path = save_program(tmp_path / "net.pt", module, torch.zeros(2, 4))
    opened = open_model(str(path), X)
    assert (opened.spec.name, opened.digest) == ("net", identify(str(path)).digest)
    feeds = random_feeds(X, 5, 0)
    np.testing.assert_allclose(
        opened.run(feeds)["output"], module(torch.from_numpy(feeds["x"])).detach().numpy(), atol=PARITY_ATOL, rtol=0
    )
    with pytest.raises(UsageError, match=r"inputs of .*net.pt are not known") as caught:
        open_model(str(path))
    assert "--input NAME=batch" in caught.value.next_step
    assert "tsexport_inputs" not in caught.value.next_step


def test_torchscript_with_a_fixed_batch(tmp_path, save_program):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(1, 2, 2)

    path = save_program(tmp_path / "net.pt", Fixed(), torch.zeros(1, 4))
    with pytest.raises(UsageError, match="runs with a batch of 1 and not with 2: its batch size is fixed"):
        open_model(str(path), X)


def test_torchscript_traced_with_dropout(tmp_path):
    scripted = tmp_path / "net.pt"
    import warnings

    module = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of exactly this mistake
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 4), check_trace=False), scripted)
    with pytest.raises(UsageError, match="differs between two runs") as caught:
        open_model(str(scripted), X)
    assert "traced in training mode" in caught.value.next_step


def test_a_checkpoint_as_model_says_what_to_do(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="is a checkpoint or damaged") as caught:
        identify(str(tmp_path / "weights.pt"))
    assert "MODEL --checkpoint" in caught.value.next_step


def test_files_that_are_no_models(tmp_path):
    for name, message in {
        "a.ts": "damaged, or no TorchScript program",
        "a.pt2": "damaged, or no torch.export program",
        "a.safetensors": "no model file by its name",
    }.items():
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UsageError, match=message):
            identify(str(tmp_path / name))
    with pytest.raises(UsageError, match="there is no file"):
        identify(str(tmp_path / "absent.onnx"))


def test_checkpoint_and_settings_do_not_apply_to_files(tmp_path, save_program):
    path = save_program(tmp_path / "net.pt", nn.Linear(4, 2), torch.zeros(2, 4))
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="--checkpoint does not apply"):
        identify(str(path), checkpoint=Path(tmp_path / "a.pth"))
    with pytest.raises(UsageError, match="--set does not apply"):
        identify(str(path), settings={"a": "1"})


def test_a_plain_module_is_not_wrapped():
    module = nn.Linear(4, 2).eval()
    assert probe(module, X).module is module
