import json
from dataclasses import replace

import pytest

from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.records import MachineRecord, read_record, record_from_text, record_to_text, write_record
from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.tables import load_tables
from tsexport.bench.verdicts import judge
from tsexport.errors import BundleError


@pytest.fixture
def record(machine, measurement, budget) -> MachineRecord:
    samples = (1.0, 2.0, 3.0)
    entry = RaceEntry("a", "a", "onnxruntime", 1, ((1.0, 2.0), (3.0,)), summarize(samples),
                      Ratio(1.0, 0.0, None, 0.95), True, 10.0, 1000)  # fmt: skip
    measurements = (measurement(), measurement(batch=10))
    return MachineRecord(
        machine=machine,
        measurements=measurements,
        races=(RaceResult(1, "a", 2, 1, 0.5, (entry,)),),
        verdicts=judge([budget(), budget(device="a100", range_ms=(1.0, 2.0))], measurements, machine=machine),
        stage_seconds=(("export", 1.5), ("measure", 20.0)),
    )


def test_a_record_survives_its_file(record, tmp_path):
    path = write_record(record, tmp_path / "measurements")
    assert path.name == "0123456789ab.json"
    assert read_record(path) == record
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert json.loads(path.read_text())["schema_version"] == 1


def test_the_same_record_gives_the_same_text(record):
    assert record_to_text(record) == record_to_text(record_from_text(record_to_text(record), name="x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=2), "m.json has schema_version 2; this version of tsexport reads 1"),
        (lambda d: d.pop("schema_version"), "m.json has schema_version None"),
        (lambda d: d.update(measurments=[]), r"unknown key 'measurments' \(did you mean 'measurements'\?\)"),
        (lambda d: d.pop("machine"), "m.json: missing 'machine'"),
        (
            lambda d: d["measurements"][0].update(batch="1"),
            r'm.json: measurements\[0\].batch: is "1", needed is an integer',
        ),
    ],
)
def test_what_is_no_record_is_refused(record, change, message):
    document = json.loads(record_to_text(record))
    change(document)
    with pytest.raises(BundleError, match=message) as caught:
        record_from_text(json.dumps(document), name="m.json")
    assert "tsexport bench" in caught.value.next_step


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(BundleError, match=r"m\.json (is not valid JSON|has schema_version None)"):
        record_from_text(text, name="m.json")


def test_an_absent_record_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"absent\.json cannot be read"):
        read_record(tmp_path / "absent.json")


def test_a_failed_write_leaves_the_old_record(record, tmp_path):
    path = write_record(record, tmp_path)
    before = path.read_bytes()
    broken = MachineRecord(machine=record.machine, stage_seconds=(("export", object()),))
    with pytest.raises(ValueError, match="a record cannot hold"):
        write_record(broken, tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_record_from_before_use_cases_is_read(record):
    document = json.loads(record_to_text(record))
    del document["service_levels"]
    assert record_from_text(json.dumps(document), name="m.json") == record
    asked = replace(record, service_levels=load_tables().service_level)
    assert record_from_text(record_to_text(asked), name="m.json") == asked
