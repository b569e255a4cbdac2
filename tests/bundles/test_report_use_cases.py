"""What artifacts are fast enough for, on the page: by the use cases that stand with the measurements, and no others."""

from dataclasses import replace

import pytest

from tsexport.bench.device_records import DeviceMeasurement, DeviceRecord, MeasuredDevice, write_device_record
from tsexport.bench.records import read_record, write_record
from tsexport.bench.tables import ServiceLevelRow, load_tables
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.reports.origins import origins_of
from tsexport.reports.overview import overview_of
from tsexport.reports.use_cases import device_answers, machine_answers, use_case_table
from tsexport.reports.views import bundle_view
from tsexport.reports.writing import render_report

LEVELS = load_tables().service_level


def view_of(folder):
    bundle = open_bundle(folder)
    return bundle_view(bundle, 1, read_measurements(bundle), read_attached(bundle))


def rewrite(folder, change):
    """Change the record of a bundle's one machine."""
    (path,) = (folder / MEASUREMENTS).glob("*.json")
    write_record(change(read_record(path)), path.parent)


def with_latencies(record, **ms):
    """Return the record with one latency for each batch of the selected artifact: `b1=5.0`; a count as `(5.0, 9)`."""
    measurements = []
    for one in record.measurements:
        value = ms.get(f"b{one.batch}") if one.artifact == "int8-onnx" else None
        latency, count = value if isinstance(value, tuple) else (value, 100)
        measurements.append(one if value is None else replace(one, samples_ms=(latency,) * count))
    return replace(record, measurements=tuple(measurements))


def device_record(transfers="included", quantization="file", ms=20.0):
    device = MeasuredDevice("d0d0", "Orin Nano", "Orin", "8.7", "15W", "10.3.0", "", "Linux")
    return DeviceRecord(
        device, "jetson-int8", "int8-onnx", "int8", quantization, "a" * 64, "b" * 64, 1000, transfers, False, False,
        200, 10, 100, "c" * 64, (DeviceMeasurement(1, (ms,) * 700, 1.9),), service_levels=LEVELS,
    )  # fmt: skip


def test_a_cell_says_which_batches_hold_a_use_case(full_folder):
    rewrite(full_folder, lambda record: with_latencies(record, b1=5.0, b10=40.0, b32=(0.5, 9)))
    table = view_of(full_folder).machines[0].use_cases
    assert [(one.name, one.allowed, one.note) for one in table.columns] == [
        ("real-time", "10 ms", "1-minute bars"),
        ("near-real-time", "50 ms", "5-minute bars"),
        ("batch", "1000 ms", "end of day"),
    ]
    (row,) = (one for one in table.rows if one.artifact == "int8-onnx")
    few = ("inconclusive at batch 32", "inconclusive")
    assert row.cells == (
        (("yes at batch 1", "met"), ("no at batch 10", "missed"), few),
        (("yes at batch 1, 10", "met"), few),
        (("yes at batch 1, 10", "met"), few),
    )


def test_the_page_shows_every_artifact_and_how_it_was_answered(full_folder):
    rewrite(full_folder, lambda record: with_latencies(record, b1=20.0))
    page = render_report([open_bundle(full_folder)])
    assert page.count("Fast enough for") == 1
    assert '<span class="status missed">no at batch 1</span>' in page
    assert "1-minute bars" in page
    (origin,) = (one for one in origins_of(view_of(full_folder)) if one.what == "use cases")
    assert origin.obtained == "measured"
    assert origin.how == (
        "the p90 of those calls against the 10 ms, 50 ms, 1000 ms that Model Infrastructure Requirements Guide allows "
        "a call"
    )


def test_without_use_cases_in_the_record_the_page_asks_none(full_folder):
    """An older bundle: the tables of this version are not its own."""
    rewrite(full_folder, lambda record: replace(record, service_levels=()))
    page = render_report([open_bundle(full_folder)] * 2)
    assert "Fast enough for" not in page
    assert 'id="use-cases"' not in page
    assert "use cases" not in {one.what for one in origins_of(view_of(full_folder))}


def test_many_bundles_answer_side_by_side(full_folder):
    own = (ServiceLevelRow("trading", 1e-6, "us"),)
    view = view_of(full_folder)
    (machine,) = view.machines
    record = replace(machine.record, service_levels=own)
    other = replace(view, machines=(replace(machine, record=record),))
    overview = overview_of([view, other])
    assert [one.name for one in overview.use_cases] == ["real-time", "near-real-time", "batch", "trading"]
    first, second = overview.fast_enough
    assert (first.artifact, first.place) == ("int8-onnx", "Example CPU, 2 cores, avx2")
    assert first.cells[0] == (("yes at batch 1, 10, 32", "met"),)
    assert first.cells[3] == second.cells[0] == ()
    assert second.cells[3] == (("no at batch 1, 10, 32", "missed"),)
    page = render_report([open_bundle(full_folder)] * 2)
    assert 'id="use-cases"' in page


@pytest.mark.parametrize(
    ("record", "cells"),
    [
        (device_record(), ("no at batch 1", "yes at batch 1", "yes at batch 1")),
        (device_record("excluded"), ("no at batch 1", "inconclusive at batch 1", "inconclusive at batch 1")),
    ],
)
def test_a_device_without_its_copies_holds_no_use_case(full_folder, record, cells):
    write_device_record(record, full_folder / MEASUREMENTS)
    view = view_of(full_folder)
    (row,) = view.devices[0].use_cases.rows
    assert tuple(text for ((text, _),) in row.cells) == cells
    found = [row for row in overview_of([view, view]).fast_enough if "Orin" in row.place]
    assert len(found) == 2
    (origin,) = (one for one in origins_of(view) if one.what == "use cases on the device")
    assert origin.where == "measurements/device-d0d0.json"


def test_an_engine_that_was_not_verified_answers_nothing():
    assert device_answers(device_record(quantization="implicit")) == ()
    assert use_case_table(()).rows == ()


def test_answers_are_those_of_the_terminal(full_folder):
    """The same function answers `tsexport bench`; the page only lays them out."""
    (record,) = read_measurements(open_bundle(full_folder))
    answers = machine_answers(record)
    assert len(answers) == len(LEVELS) * len(record.measurements)
    assert {one.source for one in answers} == {level.source for level in LEVELS}
