"""Many bundles side by side, where each number was obtained, and profiles."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from tsexport.bench.device_records import DeviceMeasurement, DeviceRecord, MeasuredDevice, write_device_record
from tsexport.bench.profile_records import TOP_NODES, write_profile
from tsexport.bench.records import read_record, write_record
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.errors import BundleError
from tsexport.reports.origins import origins_of
from tsexport.reports.overview import overview_of
from tsexport.reports.profiles import profile_view, read_profiles
from tsexport.reports.views import bundle_view
from tsexport.reports.writing import render_report

SHARES_TOLERANCE = 0.01
"""Percent: each share is rounded to two digits."""


def view_of(folder, number=1):
    bundle = open_bundle(folder)
    return bundle_view(bundle, number, read_measurements(bundle), read_attached(bundle))


def rewrite(folder, change):
    """Change a bundle's manifest in place."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def views(many_folders):
    return [view_of(folder, number) for number, folder in enumerate(many_folders, start=1)]


def test_a_row_says_what_was_selected_and_what_it_gained(views, full_folder):
    (record,) = read_measurements(open_bundle(full_folder))
    entry = next(one for one in record.races[0].entries if one.artifact == "int8-onnx")
    row = overview_of(views).rows[0]
    assert row.artifact.name == "int8-onnx"
    assert (row.status, row.statuses) == ("pass", (("1 pass", "pass"),))
    assert row.obtained == "measured"
    assert row.speedup.order == entry.speedup.value
    assert row.speedup.text == f"{entry.speedup.value:.2f}x"
    assert row.speedup.note.endswith("over fp32-onnx on onnxruntime")
    assert (row.error.text, row.error.note) == ("0.8 % worse", "mse, 5 % allowed")
    assert row.projected.text.endswith(" ms")
    assert row.memory.order == 120e6
    assert dict(row.candidates) == {"selected": 1, "rejected": 1, "failed": 1}
    sizes = {one.name: one.size_bytes for one in views[0].manifest.artifacts}
    assert row.size_share.order == sizes["int8-onnx"] / sizes["fp32-onnx"]


def test_what_nothing_measured_says_so(views):
    row = overview_of(views).rows[1]
    assert (row.obtained, row.status, row.place) == ("not measured", "not measured", "")
    for figure in (row.p50, row.speedup, row.memory, row.load):
        assert (figure.text, figure.order) == ("not measured", None)


def test_an_fp32_artifact_is_not_compared_with_itself(full_folder):
    rewrite(full_folder, lambda manifest: manifest["selected"].update(artifact="fp32-onnx"))
    view = view_of(full_folder)
    overview = overview_of([view, view])
    assert overview.rows[0].speedup.text == "fp32 itself"
    assert overview.speedups == ()


def test_without_labels_the_output_error_is_judged(full_folder):
    def without(manifest):
        for one in (*manifest["accuracy"], *(c["accuracy"] for c in manifest["candidates"] if c["accuracy"])):
            one.update(metric=None, source_value=None, value=None, degradation=None)

    rewrite(full_folder, without)
    row = overview_of([view_of(full_folder)]).rows[0]
    assert (row.error.text, row.error.note) == ("1 %", "output error, 5 % allowed")


def test_a_machine_and_a_device_have_a_row_each(full_folder):
    (record,) = read_measurements(open_bundle(full_folder))
    other = replace(record, machine=replace(record.machine, machine_id="ba9876543210", cpu_model="Other CPU"))
    write_record(other, full_folder / MEASUREMENTS)
    device = MeasuredDevice("d0d0", "Orin Nano", "Orin", "8.7", "15W", "10.3.0", "", "Linux")
    write_device_record(
        DeviceRecord(
            device, "jetson-int8", "fp32-onnx", "fp32", "file", "a" * 64, "b" * 64, 1000, "included", False, False,
            200, 10, 100, "c" * 64, (DeviceMeasurement(1, tuple(2.0 + i / 1000 for i in range(700)), 1.9),),
        ),
        full_folder / MEASUREMENTS,
    )  # fmt: skip
    view = view_of(full_folder)
    places = [row.place for row in overview_of([view]).rows]
    assert places == [
        "Example CPU, 2 cores, avx2", "Other CPU, 2 cores, avx2", "Orin Nano, 15W, TensorRT 10.3.0",
    ]  # fmt: skip
    (row,) = (row for row in overview_of([view]).rows if "Orin" in row.place)
    assert (row.p50.text, row.obtained) == ("2.35 ms", "measured")
    assert row.p50.note == "p90 2.63 ms, p99 2.69 ms, 700 calls, batch 1, copies included"
    assert len(overview_of([view, view]).latencies) == 2, "a plot holds what one machine measured"
    (origin,) = (one for one in origins_of(view) if one.what == "latency on the device")
    assert (origin.obtained, origin.where) == ("measured", "measurements/device-d0d0.json")


def test_caveats_are_said_once(views):
    caveats = {caveat.text: len(caveat.bundles) for caveat in overview_of(views).caveats}
    assert caveats["a caveat of the model"] == 3
    assert next(iter(caveats.values())) == 3, "those of most bundles first"
    assert sum(count == 1 for count in caveats.values()) == 1


def test_a_budget_row_knows_its_bundle(views):
    overview = overview_of(views)
    assert [row.bundle.anchor for row in overview.judged] == ["bundle-1", "bundle-3"]
    assert all(row.verdict.obtained == "measured" for row in overview.judged)
    assert all(row.verdict.obtained == "not measured" for row in overview.not_judged)


def test_where_a_number_stands_there_is_a_file(views, many_folders):
    for view, folder in zip(views, many_folders, strict=True):
        origins = origins_of(view)
        assert {one.obtained for one in origins} <= {
            "measured", "profiled", "projected", "counted", "published", "not measured",
        }  # fmt: skip
        for one in origins:
            assert not one.where or (folder / one.where).exists() or one.where == f"{MEASUREMENTS}/", one
    found = {one.obtained for one in origins_of(views[0])}
    assert {"measured", "profiled", "projected", "counted"} <= found
    (latency,) = (one for one in origins_of(views[1]) if "latency" in one.what)
    assert latency.obtained == "not measured"


def test_a_profile_as_text(full_folder):
    record = read_profiles(open_bundle(full_folder))[0].record
    view = profile_view(record)
    assert len(view.nodes) == TOP_NODES + 1
    assert view.nodes[-1].name == "11 other nodes"
    for rows in (view.nodes, view.operators):
        assert sum(row.share_percent for row in rows) == pytest.approx(100, abs=SHARES_TOLERANCE * len(rows))
    page = render_report([open_bundle(full_folder)])
    assert "Where the time goes" in page
    assert "Under the profiler a call took 0.352 ms, without it 0.317 ms in the same process" in page


def test_why_there_is_no_profile(full_folder):
    record = read_profiles(open_bundle(full_folder))[0].record
    empty = replace(record, operators=(), nodes=(), rest_nodes=0, rest_ms=0.0, reason="tract <does> not tell")
    write_profile(empty, full_folder / MEASUREMENTS)
    page = render_report([open_bundle(full_folder)])
    assert "No profile of int8-onnx on onnxruntime: tract &lt;does&gt; not tell." in page
    origin, other = (one for one in origins_of(view_of(full_folder)) if one.what == "shares of nodes")
    assert other.obtained == "profiled"
    assert (origin.obtained, origin.how) == ("not measured", "tract <does> not tell")


def test_a_damaged_profile_is_named(full_folder):
    path, *_ = (full_folder / MEASUREMENTS / "profiles").iterdir()
    path.write_text("{}")
    with pytest.raises(BundleError, match=rf"{path.name}.*schema_version"):
        render_report([open_bundle(full_folder)])


def test_hostile_names_are_only_text(full_folder, tmp_path):
    """In names, reasons and node names, on the page of one bundle and of several."""
    evil = '"><script>alert(1)</script><svg onload=alert(1)>'

    def poison(manifest):
        manifest["name"] += evil.replace("/", "")  # a name is a folder's, so it has no slash
        manifest["model"]["name"] += evil
        manifest["target"]["summary"] += evil
        manifest["caveats"].append(evil)
        manifest["candidates"][0]["name"] += evil
        manifest["candidates"][1]["reason"] += evil

    rewrite(full_folder, poison)
    (path,) = (full_folder / MEASUREMENTS).glob("*.json")
    record = read_record(path)
    races = tuple(
        replace(race, baseline=race.baseline + evil,
                entries=tuple(replace(one, name=one.name + evil) for one in race.entries))
        for race in record.races
    )  # fmt: skip
    machine = replace(record.machine, cpu_model=record.machine.cpu_model + evil)
    write_record(replace(record, races=races, machine=machine), full_folder / MEASUREMENTS)
    profile = read_profiles(open_bundle(full_folder))[0].record
    nodes = (replace(profile.nodes[0], name=evil, operator=evil, kernel=evil), *profile.nodes[1:])
    write_profile(replace(profile, nodes=nodes), full_folder / MEASUREMENTS)
    other = tmp_path / "dist" / "other"
    shutil.copytree(full_folder, other)
    for folders in ([full_folder], [full_folder, other]):
        page = render_report([open_bundle(folder) for folder in folders])
        assert "<script>alert" not in page
        assert "<svg onload" not in page
        assert len(re.findall("<script>", page)) == 1
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
