"""A training is reproduced to the bit on the same kind of machine, and to a metric on another."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tsexport.models.training.reproducible import (
    TASK_ERROR_TOLERANCE,
    kind_of_machine,
    read_metadata,
    reproduces,
    write_checkpoint,
)


def trainer(weight=0.5, mse=0.2):
    """Return a training that gives this weight and reaches this metric."""

    def train(output):
        module = torch.nn.Linear(1, 1)
        with torch.no_grad():
            module.weight.fill_(weight)
            module.bias.fill_(0)
        write_checkpoint(module, output, {"seed": 0, "mse": mse})

    return train


def made_elsewhere(path, mse):
    metadata = {"mse": mse, "made_on": {**kind_of_machine(), "torch": "1.0"}}
    save_file({"weight": torch.zeros(1, 1)}, path, metadata={"tsexport": json.dumps(metadata)})


def test_a_checkpoint_holds_its_metadata_and_the_machine(tmp_path):
    trainer()(tmp_path / "a.safetensors")
    assert read_metadata(tmp_path / "a.safetensors") == {"seed": 0, "mse": 0.2, "made_on": kind_of_machine()}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_bytes_are_reproduced(tmp_path, capsys):
    trainer()(tmp_path / "a.safetensors")
    assert reproduces(tmp_path / "a.safetensors", trainer(), "mse")
    assert capsys.readouterr().out == "a.safetensors is reproduced bit by bit\n"


def test_other_bytes_on_the_same_machine_are_not(tmp_path, capsys):
    trainer()(tmp_path / "a.safetensors")
    assert not reproduces(tmp_path / "a.safetensors", trainer(weight=0.6), "mse")
    assert capsys.readouterr().out.startswith("the bytes of a.safetensors differ: made on {")


@pytest.mark.parametrize(("part_of_tolerance", "expected"), [(0.9, True), (1.1, False), (-1.1, False)])
def test_another_machine_must_reach_the_same_metric(tmp_path, part_of_tolerance, expected):
    made_elsewhere(tmp_path / "a.safetensors", mse=1.0)
    again = trainer(mse=1.0 + part_of_tolerance * TASK_ERROR_TOLERANCE)
    assert reproduces(tmp_path / "a.safetensors", again, "mse") is expected
