"""Bundles for the report: one with everything that `measurements/` can hold."""

import json
import shutil

import pytest

from tsexport.bench.outlook import write_projection
from tsexport.bench.profile_records import NodeTime, ProfileRecord, by_operator, longest, write_profile
from tsexport.bench.records import read_record
from tsexport.bundles import open_bundle
from tsexport.checksums import MEASUREMENTS, seal
from tsexport.projecting import project_selected
from tsexport.targets import parse_target


def example_profile(machine):
    """A profile with more nodes than a record names; the times are made up, not measured."""
    nodes = [NodeTime(f"/layer.{i}/node", ("MatMul", "Add", "Relu")[i % 3], "", 0.0137 / (i + 1)) for i in range(41)]
    named, rest, rest_ms = longest(nodes)
    return ProfileRecord(
        machine, "int8-onnx", "onnxruntime", "int8", 1, 2, "a clock of the tests", 217, 0.3517, 0.3171,
        by_operator(nodes), named, rest, rest_ms,
    )  # fmt: skip


@pytest.fixture
def full_folder(measured_folder):
    """The measured bundle with a profile and a projection."""
    folder = measured_folder / MEASUREMENTS
    (path,) = folder.glob("*.json")
    write_profile(example_profile(read_record(path).machine), folder)
    bundle = open_bundle(measured_folder)
    record = project_selected(
        parse_target("jetson-fp16"), bundle.manifest.model, bundle.artifact("fp32-onnx"), (1, 8), lambda line: None
    )
    assert record is not None
    assert record.projections, record.reason
    write_projection(record, folder)
    return measured_folder


@pytest.fixture
def many_folders(full_folder, tmp_path):
    """Bundles of three kinds: with everything, never measured, and with names that are far too long."""
    plain = tmp_path / "dist" / "plain"
    shutil.copytree(full_folder, plain, ignore=shutil.ignore_patterns(MEASUREMENTS))
    long = tmp_path / "dist" / "long"
    shutil.copytree(full_folder, long)
    manifest = json.loads((long / "manifest.json").read_text())
    manifest["name"] = "a-name-without-an-end-" + 9 * "0123456789abcdef"
    manifest["model"]["name"] = "model" + 90 * "x"
    manifest["caveats"].append("a caveat with a path: /" + 60 * "folder/")
    (long / "manifest.json").write_text(json.dumps(manifest))
    folders = [full_folder, plain, long]
    for folder in folders:
        seal(folder)
    return folders
