"""The reference checkpoint of patchtst-cpu: what its metadata promise, and that its script makes it again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tsexport.calibration import market
from tsexport.models.registry import get_entry
from tsexport.models.sources import identify, open_source

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "models" / "training" / "patchtst_cpu.py"
MSE_TOLERANCE = 1e-4
"""Relative: other kernels sum 3,465 squared errors in another order; the metadata have six digits."""


@pytest.fixture(scope="module")
def metadata():
    with safe_open(get_entry("patchtst-cpu").checkpoint, framework="numpy") as file:
        return json.loads(file.metadata()["tsexport"])


def test_it_is_as_good_as_it_says_and_beats_persistence(metadata):
    table, close = market.reference_table()
    inputs, targets = market.scaled_examples(table, market.evaluation_starts(len(table)))
    opened = open_source(identify("patchtst-cpu"))
    answers = [opened.run({"features": inputs[i : i + 512]})["forecast"] for i in range(0, len(inputs), 512)]
    mse = np.square(np.concatenate(answers).astype(np.float64) - targets).mean()
    persistence = np.square(inputs[:, -1, [close]].astype(np.float64) - targets).mean()
    mean = np.square(inputs[:, :, close].mean(axis=1, keepdims=True).astype(np.float64) - targets).mean()
    assert mse == pytest.approx(metadata["mse"], rel=MSE_TOLERANCE)
    assert persistence == pytest.approx(metadata["persistence_mse"], rel=MSE_TOLERANCE)
    assert mse < 0.5 * persistence
    assert mse < 0.85 * mean


def test_metadata_name_what_it_was_made_of(metadata):
    assert metadata["series"] == {"seed": market.REFERENCE_SEED, "rows": market.REFERENCE_ROWS}
    assert set(metadata["made_on"]) == {"architecture", "vectors", "torch", "numpy"}


@pytest.mark.slow
def test_script_makes_the_file_again():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
