"""Strict loading, and which settings a misfit points to."""

import pytest
import torch

from tsexport.errors import CheckpointError
from tsexport.models import dlinear, linear, patchtst, patchtst_cpu, sfno_edge
from tsexport.models.checkpoints import read_checkpoint
from tsexport.models.loading import load_strictly
from tsexport.models.registry import get_entry


def saved(path, definition, **sizes):
    torch.save(definition.build(definition.Config(**sizes)).state_dict(), path)
    return read_checkpoint(path)


def load(definition, checkpoint, **sizes):
    config = definition.Config(**sizes)
    return load_strictly(definition.build(config), checkpoint, model="the model", definition=definition, config=config)


@pytest.mark.parametrize(
    ("definition", "sizes", "flags"),
    [
        (patchtst_cpu, {"width": 256}, "--set width=256"),
        (patchtst_cpu, {"layers": 5}, "--set layers=5"),
        (patchtst_cpu, {"layers": 2}, "--set layers=2"),
        (patchtst_cpu, {"feed_forward": 256}, "--set feed_forward=256"),
        (patchtst_cpu, {"positional_encoding": True}, "--set positional_encoding=true"),
        (patchtst_cpu, {"horizon": 7}, "--set horizon=7"),
        (patchtst, {"horizon": 192}, "--set horizon=192"),
        (patchtst, {"width": 128, "feed_forward": 256}, "--set width=128 --set feed_forward=256"),
        (dlinear, {"individual": True}, "--set individual=true"),
        (dlinear, {"context_length": 96}, "--set context_length=96"),
        (linear, {"context_length": 720, "horizon": 24}, "--set"),
    ],
)
def test_the_settings_that_fit_are_found(tmp_path, definition, sizes, flags):
    checkpoint = saved(tmp_path / "a.pth", definition, **sizes)
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load(definition, checkpoint)
    assert "It fits with" in caught.value.next_step
    assert flags in caught.value.next_step
    # And it is true: what it says does load.
    words = caught.value.next_step.removeprefix("It fits with ").removesuffix(".").replace("--set ", "").split()
    told = dict(word.split("=") for word in words)
    assert (
        load(definition, checkpoint, **{k: v == "true" if v in ("true", "false") else int(v) for k, v in told.items()})
        == ()
    )


def test_a_named_size_is_found(tmp_path):
    """Its widths change together, which no search field by field finds."""
    checkpoint = saved(tmp_path / "a.pth", sfno_edge, **sfno_edge.Config.SIZES["test"])
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load(sfno_edge, checkpoint)
    assert caught.value.next_step == "It fits with --set size=test."


def test_a_named_size_that_does_not_go_with_the_other_settings_is_passed_over(tmp_path):
    checkpoint = saved(tmp_path / "a.pth", sfno_edge, **sfno_edge.Config.SIZES["test"])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(sfno_edge, checkpoint, widths=(16, 32, 60), heads=5)  # 5 heads do not divide that size's 64


def test_a_context_length_is_found_through_the_number_of_patches(tmp_path):
    checkpoint = saved(tmp_path / "a.pth", patchtst, context_length=512)
    with pytest.raises(CheckpointError, match=r"backbone.W_pos is \[42, 16\] in the model and \[64, 16\]") as caught:
        load(patchtst, checkpoint)
    assert "context_length" in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        # a field that is 0 or a tuple must not get in the way, nor a graph that takes seconds to lay out
        ("hrm-27m", {"l_width": 272}, "It fits with --set l_width=272."),
        ("hrm-27m", {"cross_attention": True}, "It fits with --set cross_attention=true."),
        ("tft", {"static_channels": 2}, "Settings that look wrong: static_channels."),
        ("tft", {"quantiles": (0.1, 0.5)}, "Settings that look wrong: quantiles"),
        ("nhits", {"pooling": (4, 2, 1)}, "Settings that look wrong: context_length, pooling."),
        ("unet", {"widths": (16, 32, 64)}, "Settings that look wrong: widths."),
        ("tcn", {"dilations": (1, 2, 4)}, "Settings that look wrong: dilations."),
        ("inception-time", {"kernels": (3, 5, 8)}, "Settings that look wrong: kernels."),
        ("resnet1d", {"filters": (32, 64, 64)}, "Settings that look wrong: filters"),
        ("migt-tvdt", {"horizons": (1, 2, 3)}, "Settings that look wrong: horizons"),
        ("sfno-edge", {"widths": (16, 32, 64)}, "Settings that look wrong: widths"),
        ("weather-gnn", {"width": 32}, "It fits with --set width=32."),
        ("itransformer", {"context_length": 192}, "It fits with --set context_length=192."),
        ("gru", {"layers": 3}, "Settings that look wrong: layers."),
        ("lstm", {"context_length": 60, "hidden": 64, "layers": 2}, "It fits with --set size=small."),
        ("patchtst", dict(patchtst.Config.SIZES["medium"]), "It fits with --set size=medium."),
    ],
)
def test_a_misfit_names_the_fields_of_every_model(tmp_path, name, changes, hint):
    definition = get_entry(name).definition()
    checkpoint = saved(tmp_path / "a.pth", definition, **changes)
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load(definition, checkpoint)
    assert caught.value.next_step.startswith(hint)


def test_names_and_shapes_are_listed_and_the_lists_are_short(tmp_path):
    torch.save({f"other.{i}": torch.ones(1) for i in range(20)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load(linear, read_checkpoint(tmp_path / "a.pth"))
    assert "missing: Linear.weight, Linear.bias; unexpected: other.0, other.1" in caught.value.message
    assert "other.4 and 15 more" in caught.value.message
    assert "another model" in caught.value.next_step


def test_one_missing_tensor_is_enough(tmp_path):
    state = linear.build(linear.Config()).state_dict()
    del state["Linear.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the model: missing: Linear\.bias"):
        load(linear, read_checkpoint(tmp_path / "a.pth"))


def test_a_prefix_that_the_model_itself_has_is_kept(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(3, 2)

    module = Wrapped()
    torch.save({f"module.{name}": value for name, value in Wrapped().state_dict().items()}, tmp_path / "a.pth")
    assert load_strictly(module, read_checkpoint(tmp_path / "a.pth"), model="mine") == ("module.",)
    with pytest.raises(CheckpointError, match=r"does not fit mine: .*unexpected"):
        load_strictly(torch.nn.Linear(3, 2, bias=False), read_checkpoint(tmp_path / "a.pth"), model="mine")


def test_loaded_values_are_the_files(tmp_path):
    checkpoint = saved(tmp_path / "a.pth", linear)
    module = linear.build(linear.Config())
    load_strictly(module, checkpoint, model="linear")
    assert torch.equal(module.Linear.weight, checkpoint.state["Linear.weight"])
