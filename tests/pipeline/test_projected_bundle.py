"""A build for a device that is not here, with its projection: in the bundle, in the report and on the terminal."""

import html
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import tsexport
from tsexport.bench.outlook import outlooks, write_projection
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import check_sums
from tsexport.bundles.measured import read_measurements, read_projections
from tsexport.cli.build import _show_bundle
from tsexport.errors import BundleError
from tsexport.reports.writing import render_report
from tsexport.types import Budget


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projected")
    generator = np.random.default_rng(0)
    np.savez(folder / "series.npz", series=generator.standard_normal((200, 32, 2)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
        return tsexport.build(
            "dlinear",
            "jetson-fp16",
            set={"context_length": 32, "horizon": 8, "channels": 2},
            calibration=folder / "series.npz",
            output=folder / "dist",
            batch=[1, 8],
        )


@pytest.fixture
def changed(bundle, tmp_path):
    """Return a function that gives the bundle with another projection."""

    def change(record):
        folder = shutil.copytree(bundle.path, tmp_path / "copy", dirs_exist_ok=True)
        write_projection(record, folder / "measurements")
        return open_bundle(folder)

    return change


def test_a_bundle_holds_its_projection_apart_from_what_was_measured(bundle):
    (record,) = read_projections(bundle)
    assert (record.kind, record.device, record.tensorrt) == ("projected", "orin-nano", "10.3")
    assert record.artifact == bundle.manifest.selected.artifact
    assert {one.batch for one in record.projections} == {1, 8}
    assert all(one.total_ms >= one.least_ms > 0 for one in record.projections)
    (measured,) = read_measurements(bundle)
    assert measured.measurements == ()
    assert "projected/orin-nano.json" in (bundle.path / "measurements" / "SHA256SUMS").read_text()
    assert check_sums(bundle.path) > 0


def test_nothing_that_is_signed_holds_a_projection(bundle):
    signed = [bundle.path / name for name in ("manifest.json", "README.md", "selection.json")]
    assert not [path.name for path in signed if "projected" in path.read_text()]


def test_the_report_and_the_terminal_label_what_is_projected(bundle, capsys):
    (record,) = read_projections(bundle)
    page = (bundle.path / "report.html").read_text()
    assert "<h3>Projected, not measured: Jetson Orin Nano 8 GB, TensorRT 10.3</h3>" in page
    assert '<div class="name">projected latency, batch 1</div>' in page
    for assumption in record.assumptions:
        assert html.escape(assumption) in page
    _show_bundle(bundle)
    shown = capsys.readouterr()
    assert f"projected, not measured: {record.artifact} on Jetson Orin Nano 8 GB" in " ".join(shown.out.split())
    assert "median error" in shown.err


def test_published_rows_are_answered_in_the_report_and_on_the_terminal(bundle, changed, capsys):
    (record,) = read_projections(bundle)
    budget = Budget("latency", "forecaster", "orin-nano", "fp16", 1, max_ms=1e-9, source="a test")
    with changed(replace(record, outlooks=outlooks([budget], record.projections, "fp16"))) as answered:
        assert "<td>cannot be met even at peak</td>" in render_report([answered])
        _show_bundle(answered)
    assert "which only a measurement judges" in " ".join(capsys.readouterr().out.split())


def test_the_report_says_why_nothing_was_projected(bundle, changed, capsys):
    (record,) = read_projections(bundle)
    with changed(replace(record, projections=(), reason="a reason")) as without:
        assert "Nothing was projected: a reason." in render_report([without])
        _show_bundle(without)
    assert "projected, not measured" not in capsys.readouterr().out


def test_a_damaged_projection_is_an_error_of_the_bundle(bundle, tmp_path):
    folder = shutil.copytree(bundle.path, tmp_path / "copy")
    path = folder / "measurements" / "projected" / "orin-nano.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "measured"}))
    with open_bundle(folder) as damaged, pytest.raises(BundleError, match=r"orin-nano\.json"):
        render_report([damaged])
