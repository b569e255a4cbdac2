"""Bundles for the report: one with everything that `measurements/` can hold."""

import json
import shutil
from dataclasses import replace

import pytest

from tsexport.bench.memory_wire import MemoryGrowth, PeakMemory
from tsexport.bench.outlook import write_projection
from tsexport.bench.profile_records import NodeTime, ProfileRecord, by_operator, longest, write_profile
from tsexport.bench.records import read_record
from tsexport.bench.scenario_records import (
    FOLDER,
    BatchPoint,
    Memory,
    Offline,
    ScenarioRecord,
    Server,
    ServerRun,
    SingleStream,
    write_scenario,
)
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import MEASUREMENTS, seal
from tsexport.stages.projecting import project_selected
from tsexport.targets import parse_target


def example_profile(machine):
    """A profile with more nodes than a record names; the times are made up, not measured."""
    nodes = [NodeTime(f"/layer.{i}/node", ("MatMul", "Add", "Relu")[i % 3], "", 0.0137 / (i + 1)) for i in range(41)]
    named, rest, rest_ms = longest(nodes)
    return ProfileRecord(
        machine, "int8-onnx", "onnxruntime", "int8", 1, 2, "a clock of the tests", 217, 0.3517, 0.3171,
        by_operator(nodes), named, rest, rest_ms,
    )  # fmt: skip


def example_scenarios(machine):
    """A record of each scenario; the numbers are made up, not measured."""
    base = ScenarioRecord(machine, "tiny-cpu4-int8", "int8-onnx", "onnxruntime", 2, "single-stream")
    points = tuple(
        BatchPoint(batch, 1000 // batch, 8.03, 0.21 * batch**0.8, 0.26 * batch**0.8, 4700.0 * batch**0.31)
        for batch in (1, 2, 4, 8, 16, 32, 64)
    )
    rates = ((7321.0, 0.9, 4.0, 61.7, False), (3660.5, 0.31, 0.52, 1.93, True), (5176.7, 0.42, 0.97, 7.31, True))
    runs = tuple(
        ServerRun(qps, 29_284, 29_284 if valid else 5_813, 8.01, 1.0, p50, p90, p99, 17 if valid else 293, not valid,
                  valid, False)
        for qps, p50, p90, p99, valid in rates
    )  # fmt: skip
    memory = Memory(1, PeakMemory(91_750_400, 97_517_568, 99_876_864, 98_041_856),
                    MemoryGrowth(10_000, 98_041_856, 98_566_144, 98_697_216, True))  # fmt: skip
    return (
        replace(base, single_stream=SingleStream(31_007, 8.02, 0.2563, 0.2411, 0.3119, 0.4417, False)),
        replace(base, scenario="offline", offline=Offline(points, 64, points[-1].samples_per_s, 960, False)),
        replace(base, scenario="server", server=Server(10.0, "service level real-time", 1, 0, runs, 5176.7)),
        replace(base, scenario="memory", memory=memory),
    )


@pytest.fixture
def full_folder(measured_folder):
    """The measured bundle with profiles, scenarios and a projection."""
    folder = measured_folder / MEASUREMENTS
    (path,) = folder.glob("*.json")
    machine = read_record(path).machine
    profile = example_profile(machine)
    write_profile(profile, folder)
    write_profile(replace(profile, artifact="fp32-onnx", precision="fp32", calls=219), folder, headline=False)
    for one in example_scenarios(machine):
        write_scenario(one, folder / FOLDER)
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
