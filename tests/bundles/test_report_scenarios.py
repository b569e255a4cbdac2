"""Scenarios on the page: what a record holds, where it stands, its plot; and records that hold something else."""

import json
import shutil
from dataclasses import replace

import pytest

from tsexport.bench.profile_records import read_profile, write_profile
from tsexport.bench.scenario_records import FOLDER, SCENARIOS, read_scenario, write_scenario
from tsexport.bench.scenario_rows import SHORT, scenario_table
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.errors import BundleError
from tsexport.reports.origins import origins_of
from tsexport.reports.overview import overview_of
from tsexport.reports.scenarios import read_scenarios, scenario_views
from tsexport.reports.views import bundle_view
from tsexport.reports.writing import render_report


def view_of(folder):
    bundle = open_bundle(folder)
    return bundle_view(bundle, 1, read_measurements(bundle), read_attached(bundle))


@pytest.fixture
def records(full_folder):
    return {record.scenario: record for record in read_scenarios(open_bundle(full_folder))}


def test_every_scenario_has_its_figure_and_its_table(records):
    tables = {name: scenario_table(record) for name, record in records.items()}
    assert {name: table.figure for name, table in tables.items()} == {
        "single-stream": "SingleStream: p90 0.312 ms",
        "offline": "Offline: 17,060 samples/s at batch 64, over 960 samples",
        "server": "Server: 5177 queries/s is the highest valid rate that was tried",
        "memory": "Memory: peak 7.8 MiB above an idle session at batch 1, growth +0.12 MiB over the second half of "
        "10,000 calls",
    }
    for table in tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert tables["server"].conditions == "p99 within 10 ms (service level real-time), from the scheduled arrival"
    assert tables["server"].rows[-1] == (
        "7321", "5,813 of 29,284", "1.00", "0.9 ms", "4 ms", "61.7 ms", "293", "cut short",
    )  # fmt: skip
    assert tables["offline"].notes == (SHORT,)
    assert tables["memory"].notes == ()


def test_what_a_reader_must_know(records):
    served = replace(records["server"].server, max_batch=8, max_qps=None)
    hopeless = replace(records["server"], server=served)
    assert scenario_table(hopeless).figure == "Server: no rate is valid"
    assert scenario_table(hopeless).conditions.endswith("; up to 8 that wait are answered together")
    assert hopeless.failure == (
        "no rate held a p99 of 10 ms (service level real-time); the lowest tried was 3660 queries/s"
    )
    memory = records["memory"].memory
    untrimmed = replace(records["memory"], memory=replace(memory, growth=replace(memory.growth, trimmed=False)))
    assert "no free memory back" in scenario_table(untrimmed).notes[0]
    single = records["single-stream"]
    long = replace(single, single_stream=replace(single.single_stream, long_enough=True))
    assert scenario_table(long).notes == ()


def test_the_page_shows_them_in_their_order_with_two_plots(full_folder):
    (part,) = view_of(full_folder).scenarios
    assert [one.record.scenario for one in part.scenarios] == list(SCENARIOS)
    assert [bool(one.plot) for one in part.scenarios] == [False, True, True, False]
    page = render_report([open_bundle(full_folder)])
    assert "Scenarios on Example CPU" in page
    places = [page.index(f"<h4>{scenario_table(one.record).figure}") for one in part.scenarios]
    assert places == sorted(places)
    assert 'aria-label="Throughput of int8-onnx over batch sizes"' in page
    assert '<a href="#bundle-1-scenarios">Scenarios</a>' in page


def test_a_failure_is_shown(full_folder, records):
    served = replace(records["server"].server, max_qps=None)
    write_scenario(replace(records["server"], server=served), full_folder / MEASUREMENTS / FOLDER)
    page = render_report([open_bundle(full_folder)])
    assert '<span class="status failed">failed</span> no rate held a p99 of 10 ms' in page


def test_where_they_stand(full_folder):
    origins = [one for one in origins_of(view_of(full_folder)) if one.what.startswith("scenario ")]
    assert [one.what for one in origins] == [f"scenario {name}" for name in SCENARIOS]
    for one in origins:
        assert one.obtained == "measured"
        assert (full_folder / one.where).exists()
        assert "int8-onnx on onnxruntime, 2 threads" in one.how


def test_another_machine_has_a_part_of_its_own(full_folder, records):
    other = replace(records["memory"].machine, machine_id="ba9876543210", cpu_model="Other CPU")
    write_scenario(replace(records["memory"], machine=other), full_folder / MEASUREMENTS / FOLDER)
    (path,) = [path for path in (full_folder / MEASUREMENTS / "profiles").iterdir() if "-" not in path.name]
    write_profile(replace(read_profile(path), machine=other), full_folder / MEASUREMENTS)
    view = view_of(full_folder)
    assert [len(part.scenarios) for part in view.scenarios] == [4, 1]
    assert [part.machine.cpu_model for part in view.scenarios] == ["Example CPU", "Other CPU"]
    ((profile,),) = view.profiled
    assert profile.record.machine == other
    page = render_report([open_bundle(full_folder)])
    assert "Scenarios on Other CPU" in page
    assert "Profiled on Other CPU" in page
    assert sum(one.what == "shares of nodes" for one in origins_of(view)) == 3


def test_many_bundles_have_a_row_for_each(full_folder):
    view = view_of(full_folder)
    rows = overview_of([view, view]).scenarios
    assert [one.record.scenario for _, one in rows] == [*SCENARIOS, *SCENARIOS]
    page = render_report([open_bundle(full_folder)] * 2)
    assert 'id="scenarios"' in page
    shutil.rmtree(full_folder / MEASUREMENTS / FOLDER)
    bare = render_report([open_bundle(full_folder)] * 2)
    assert 'id="scenarios"' not in bare
    assert "Scenarios on" not in bare


def test_one_point_has_no_plot(records):
    offline = replace(records["offline"].offline, points=records["offline"].offline.points[:1])
    server = replace(records["server"].server, runs=records["server"].server.runs[:1])
    found = scenario_views([replace(records["offline"], offline=offline), replace(records["server"], server=server)])
    assert [one.plot for one in found[0].scenarios] == ["", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=9), "has schema_version 9"),
        (lambda d: d.update(qps=1), "unknown key 'qps'"),
        (lambda d: d.update(scenario="memory"), "is called memory and holds offline"),
        (lambda d: d.update(offline=None), "is called offline and holds nothing"),
        (lambda d: d["offline"].update(points=[]), "holds no run of offline"),
    ],
)
def test_a_record_that_holds_something_else_is_named(full_folder, change, message):
    (path,) = (full_folder / MEASUREMENTS / FOLDER).glob("offline-*.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    for read in (lambda: read_scenario(path), lambda: render_report([open_bundle(full_folder)])):
        with pytest.raises(BundleError, match=rf"{path.name} .*{message}|{path.name}: {message}") as caught:
            read()
        assert "run the scenario again" in caught.value.next_step


def test_names_are_only_text(full_folder, records):
    evil = '"><script>alert(1)</script><svg onload=alert(1)>'
    for record in records.values():
        hostile = replace(record, artifact=evil, runtime=evil, machine=replace(record.machine, cpu_model=evil))
        if hostile.server is not None:
            hostile = replace(hostile, server=replace(hostile.server, bound_from=evil))
        write_scenario(hostile, full_folder / MEASUREMENTS / FOLDER)
    page = render_report([open_bundle(full_folder)])
    assert "<script>alert" not in page
    assert "<svg onload" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
