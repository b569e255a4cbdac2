"""Calibration tables of whole builds: in the bundle, re-used to the same bytes, and refused with exit 2."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.manifest import manifest_text
from tsexport.calibration.table_files import read_tables
from tsexport.calibration.tensorrt_cache import read_cache
from tsexport.errors import BundleError, CalibrationTableError, UsageError
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.types import file_sha256

LINEAR = {"context_length": 8, "horizon": 4, "channels": 2}
TABLES, TENSORRT_CACHE = "artifacts/calibration.json", "artifacts/calibration.cache"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache of this module's builds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Files of calibration windows: these, and others."""
    folder = tmp_path_factory.mktemp("windows")
    for name, seed in (("windows", 0), ("others", 1)):
        values = np.random.default_rng(seed).standard_normal((300, 8, 2)).astype(np.float32)
        np.savez(folder / f"{name}.npz", series=values)
    return folder


@pytest.fixture(scope="module")
def linear(cache, windows, tmp_path_factory):
    """Build the linear model in ONNX alone, calibrated on a file."""

    def build(target="cpu4-int8", **options):
        given = {"calibration": windows / "windows.npz", "output": tmp_path_factory.mktemp("dist"), **options}
        return tsexport.build(
            "linear", target, set=LINEAR, formats=["onnx"], runtime="onnxruntime", batch=[1], seconds=0.2, **given
        )

    return build


@pytest.fixture(scope="module")
def bundle(linear):
    """For a device that is not here: nothing is raced."""
    return linear("t4-int8")


def test_the_tables_stand_in_the_bundle(bundle):
    tables = read_tables(bundle.path / TABLES)
    listed = bundle.manifest.calibration_tables
    assert (listed.path, listed.sha256) == (TABLES, file_sha256(bundle.path / TABLES))
    assert len({table.model_sha256 for table in tables}) == 1
    assert all(len(table.window_ids) == bundle.manifest.provenance.calibration.windows for table in tables)


@pytest.mark.slow
def test_a_table_can_be_used_again(linear, tmp_path):
    first = linear()
    assert not (first.path / TENSORRT_CACHE).exists()
    again = linear(calibration_table=first.path / TABLES)
    assert (again.path / TABLES).read_bytes() == (first.path / TABLES).read_bytes()
    built = [candidate for candidate in again.manifest.candidates if candidate.name.startswith("static")]
    assert built
    assert {one.status for one in built} <= {"eligible", "selected"}
    # what is used is the table: other ranges give another candidate
    plain = json.loads((first.path / TABLES).read_text())
    for table in plain["tables"]:
        for one in table["ranges"]:
            one["low"], one["high"] = one["low"] * 8, one["high"] * 8
    (wide := tmp_path / "wide.json").write_text(json.dumps(plain))
    worse = linear(calibration_table=wide)
    errors = [
        {one.name: one.accuracy.output_error for one in bundle.manifest.candidates if one.accuracy}
        for bundle in (again, worse)
    ]
    assert errors[1][built[0].name] > 2 * errors[0][built[0].name]


@pytest.mark.parametrize(
    ("target", "device", "number"),
    [("t4-int8", None, 100300), ("t4-int8", "@tensorrt-8.6", 8600), ("a100-int8", "@tensorrt-11.0", None)],
)
def test_a_bundle_for_tensorrt_has_its_cache(linear, target, device, number):
    bundle = linear(target, device=device)
    path = bundle.path / TENSORRT_CACHE
    assert path.exists() == (number is not None)
    if number is not None:
        cache = read_cache(path.read_text())
        (table,) = (one for one in read_tables(bundle.path / TABLES) if one.observer.method == "entropy")
        assert cache.version == number
        assert cache.scales == {one.name: np.float32(one.amax / 127) for one in table.ranges}
        assert table.model_sha256 == file_sha256(bundle.path / "artifacts/onnx-fp32.onnx")


def test_regimes_and_window_ids_stand_in_the_manifest(bundle):
    record = bundle.manifest.provenance.calibration
    assert record.windows == 236  # evaluation has 64 of the 300
    assert sum(count for name, count in record.regimes.items() if name.startswith("level")) == 236
    assert set(record.regimes) == {f"{what} {n} of 5" for what in ("level", "volatility") for n in range(1, 6)}


def test_a_table_of_other_data_is_refused(bundle, linear, windows):
    with pytest.raises(CalibrationTableError, match="the calibration table was made with other data"):
        linear("t4-int8", calibration_table=bundle.path / TABLES, calibration=windows / "others.npz")


def test_a_table_of_another_model_is_refused(bundle, linear):
    with pytest.raises(CalibrationTableError, match="the calibration table belongs to another model"):
        linear("t4-int8", calibration_table=bundle.path / TABLES, seed=1)


def test_a_table_of_another_observer_is_refused(bundle, linear, tmp_path):
    plain = json.loads((bundle.path / TABLES).read_text())
    for one in plain["tables"]:
        one["observer"] = {"method": "percentile", "percentile": 97.0, "symmetric": False, "axis": None}
    (other := tmp_path / "other.json").write_text(json.dumps(plain))
    with pytest.raises(
        CalibrationTableError, match="was made with another observer: percentile 97, affine, per tensor"
    ):
        linear("t4-int8", calibration_table=other)


def test_what_is_refused_before_anything_is_built(tmp_path):
    (damaged := tmp_path / "calibration.json").write_text("{")
    given = {"model": "linear", "output": tmp_path / "dist", "settings": LINEAR}
    with pytest.raises(CalibrationTableError, match=r"calibration\.json is not valid JSON"):
        plan_build(BuildOptions(target="cpu4-int8", calibration_table=damaged, **given))
    with pytest.raises(
        UsageError, match=r"--calibration-table calibration\.json was given, and cpu4-fp32 calibrates nothing"
    ):
        plan_build(BuildOptions(target="cpu4-fp32", calibration_table=damaged, **given))


def test_a_manifest_at_odds_with_the_tables_is_refused(bundle, tmp_path):
    shutil.copytree(bundle.path, copy := tmp_path / "copy")
    tables = replace(bundle.manifest.calibration_tables, sha256="0" * 64)
    (copy / "manifest.json").write_text(manifest_text(replace(bundle.manifest, calibration_tables=tables)))
    seal(copy)
    with pytest.raises(BundleError, match=r"manifest.json gives another SHA-256 for artifacts/calibration.json than"):
        open_bundle(copy).verify()
