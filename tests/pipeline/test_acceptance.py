"""The public ETTh1 checkpoints as bundles: their published figures, from every runtime, by a script of its own.

The figures and the protocol are those of the data's own README; what is built is given nothing of the test rows but
through the windows of `[series]`, by which candidates are judged.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import tsexport
from tsexport.bundles.bundle import Bundle

pytestmark = pytest.mark.slow

SERIES = """
[series]
time_column = "date"
split = {train = [0, 8640], validation = [8640, 11520], test = [11520, 14400]}
"""
INT8_DEGRADATION = 0.01
DIGITS = 5e-5
"""Half a unit of the fourth digit: how the figures of dlinear and linear were published."""


@dataclass(frozen=True)
class Published:
    """A model's checkpoint and its published figures."""

    checkpoint: str
    mse: float
    mae: float
    windows: str
    tolerance: float


PUBLISHED = {
    "patchtst": Published("patchtst_etth1_336_96_kemezeto.pth", 0.381494, 0.404952, "whole-batches", 1e-5),
    "dlinear": Published("dlinear_etth1_336_96.pth", 0.3841, 0.4047, "all", DIGITS),
    "linear": Published("linear_etth1_336_96.pth", 0.3747, 0.3967, "all", DIGITS),
}
CASES = [(model, target) for model in PUBLISHED for target in ("cpu4-fp32", "cpu4-int8")]


@pytest.fixture(scope="module")
def bundles(shared, tmp_path_factory) -> dict[tuple[str, str], Bundle]:
    """Every model for both targets, built once, measured as a user would."""
    folder = tmp_path_factory.mktemp("etth1")
    config = folder / "build.toml"
    config.write_text(SERIES)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
        for model, target in CASES:
            made[model, target] = tsexport.build(
                model,
                target,
                output=folder / "dist",
                config=config,
                checkpoint=shared / "data" / "checkpoints" / PUBLISHED[model].checkpoint,
                calibration=shared / "data" / "ETTh1.csv",
                seconds=4,
            )
    return made


def accept(shared: Path, bundle: Bundle, model: str, *more: str) -> tuple[int, float, float]:
    """Run the acceptance script; return its exit code, MSE and MAE."""
    published = PUBLISHED[model]
    done = subprocess.run(
        [sys.executable, str(shared / "accept" / "etth1.py"), str(bundle.path), "--windows", published.windows, *more],
        env=dict(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"MSE ([\d.]+)  MAE ([\d.]+)", done.stdout)
    assert found, done.stderr
    return done.returncode, float(found[1]), float(found[2])


@pytest.mark.parametrize(("model", "target"), CASES)
@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino", "tract"])
def test_fp32_gives_the_published_figures(shared, bundles, model, target, runtime):
    published = PUBLISHED[model]
    code, mse, mae = accept(
        shared, bundles[model, target], model, "--precision", "fp32", "--runtime", runtime,
        "--expect-mse", str(published.mse), "--expect-mae", str(published.mae),
        "--tolerance", str(published.tolerance),
    )  # fmt: skip
    assert code == 0, (mse, mae)


@pytest.mark.parametrize("model", PUBLISHED)
def test_what_an_int8_target_selects_is_at_most_one_per_cent_worse(shared, bundles, model):
    _, mse, mae = accept(shared, bundles[model, "cpu4-int8"], model)
    published = PUBLISHED[model]
    assert mse <= published.mse * (1 + INT8_DEGRADATION)
    assert mae <= published.mae * (1 + INT8_DEGRADATION)


@pytest.mark.parametrize(("model", "target"), CASES)
def test_the_bundles_verify_and_say_what_they_were_judged_on(bundles, model, target):
    bundle = bundles[model, target]
    assert bundle.verify()
    manifest = bundle.manifest
    assert manifest.provenance.evaluation.source == "ETTh1.csv"
    assert manifest.provenance.evaluation.window_ids.startswith("test: ")
    assert (manifest.provenance.calibration is None) == (target == "cpu4-fp32")
    selected = manifest.artifact(manifest.selected.artifact)
    assert target == "cpu4-int8" or selected.precision == "fp32"


def test_int8_is_selected_only_where_it_is_faster(bundles):
    from tsexport.bundles.measured import read_measurements

    for model in PUBLISHED:
        bundle = bundles[model, "cpu4-int8"]
        selected = bundle.manifest.selected
        (record,) = read_measurements(bundle)
        if bundle.manifest.artifact(selected.artifact).precision == "int8":
            last = record.races[-1]
            entry = last.entry(f"{selected.artifact} on {selected.runtime}")
            assert entry.speedup.low > 1.0
