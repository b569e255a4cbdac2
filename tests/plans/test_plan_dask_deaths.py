"""Workers of a Dask cluster that are killed while they build or measure: nothing is lost, and nothing made twice."""

import operator
import signal
import threading
from pathlib import Path

import pytest
from clusters import Cluster, write_trtexec
from distributed import Client
from plan_folders import ended, is_alive, wait_until

import tsexport
from tsexport.plans import cluster as cluster_module
from tsexport.plans import kits
from tsexport.plans.cluster import outcome_of

BUILT = "linear-t4-fp32"
STAGE = "model and data"


def inodes(place):
    return {path.parent.name: path.stat().st_ino for path in place.dist.glob("*/manifest.json")}


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_a_build(folder, cluster, ending, tmp_path):
    """Three that build and one that measures; one of the three dies.  What is counted is what lies on the disk."""
    workers = {name: cluster.start_worker(name) for name in ("one", "two", "three")}
    cluster.start_device_worker("device", "t4=1", write_trtexec(tmp_path))
    folder.write('[matrix]\nmodels = ["linear", "dlinear", "nhits"]\ntargets = ["t4-fp32", "a100-fp32"]\n')
    plan = folder.start("--executor", "dask", "--scheduler", cluster.address, "--json")
    ending.append(plan)

    # The worker that builds the first bundle dies once a stage of it is finished.
    folder.wait_for_log(BUILT, f"] {STAGE}: ")
    (building,) = folder.builders(BUILT)
    (killed,) = [name for name, process in workers.items() if process.pid == building.parent]
    workers[killed].send_signal(signal.SIGKILL)
    before = inodes(folder)
    wait_until(lambda: not is_alive(building.pid), "the end of the build of the killed worker")
    ran = ended(plan)

    assert ran.code == 0, ran.stderr
    names = {f"{model}-{target}-fp32" for model in ("linear", "dlinear", "nhits") for target in ("t4", "a100")}
    assert ran.statuses == dict.fromkeys(names, "built")
    for name in names:
        assert tsexport.verify(folder.dist / name).passed
        assert folder.builds_of(name) == 1
        steps = folder.made_steps(name)
        # The killed build did its finished stage once, and its successor the others; nobody did one twice.
        assert set(steps.values()) == {1}, (name, steps)
    # What both bundles of a model need is made by whichever came first.
    for model in ("linear", "dlinear", "nhits"):
        assert sum(folder.made_steps(f"{model}-{target}-fp32").get(STAGE, 0) for target in ("t4", "a100")) == 1
    first, second = folder.builders(BUILT)
    assert first == building
    assert second.parent in {process.pid for name, process in workers.items() if name != killed}
    assert [len(folder.builders(name)) for name in sorted(names)] == [
        2 if name == BUILT else 1 for name in sorted(names)
    ]
    assert {name: node for name, node in inodes(folder).items() if name in before} == before
    assert folder.leftovers() == []

    # Measurements: on the worker with the t4 alone, each once.
    for name in names:
        latency, device = ran.rows[name]["headline"]["latency"], (folder.dist / name / "measurements").glob("device-*")
        if "t4" in name:
            assert latency["device"] == "Tesla T4"
            assert len(list(device)) == 1
        else:
            assert latency is None
            assert ran.rows[name]["headline"]["not_measured"] == "no worker of the cluster carries the resource a100=1"
            assert list(device) == []
    assert len(list((folder.state / "results").iterdir())) == 3
    builders_of_all = {one.parent for name in names for one in folder.builders(name)}
    assert builders_of_all <= {process.pid for process in workers.values()}


@pytest.fixture
def measuring(first_run, again, cluster, tmp_path, monkeypatch):
    """A plan of one bundle that is there, and a worker with a t4 whose trtexec waits until a file is there.

    Gives the folder, the file, the worker's process, and a function that waits until the kit runs.
    """
    monkeypatch.setenv("TSEXPORT_CACHE", str(again.cache))
    again.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n')
    go, runs = tmp_path / "go", tmp_path / "runs"
    wait = f"echo $PPID >>'{runs}'; until [[ -e '{go}' ]]; do sleep 0.05; done"
    trtexec = write_trtexec(tmp_path, wait)
    worker = cluster.start_device_worker("device", "t4=1", trtexec)
    yield again, go, worker, trtexec, lambda: wait_until(runs.exists, "trtexec")
    go.touch()  # so that no script of a killed worker waits for ever


@pytest.mark.slow
def test_a_measurement_whose_worker_is_killed_is_taken_by_another_one(measuring, cluster, ending):
    place, go, _, trtexec, wait_for_kit = measuring
    cluster.start_device_worker("other", "t4=1", trtexec)
    plan = place.start("--executor", "dask", "--scheduler", cluster.address, "--json")
    ending.append(plan)
    wait_for_kit()
    process = int((go.parent / "runs").read_text().split()[0])
    running = {one.pid: one for one in cluster.processes}
    while process not in running:
        process = parent_of(process)
    running[process].send_signal(signal.SIGKILL)
    go.touch()
    ran = ended(plan)
    assert ran.code == 0, ran.stderr
    assert ran.statuses == {BUILT: "there already"}
    assert ran.rows[BUILT]["headline"]["latency"]["device"] == "Tesla T4"
    assert len(list((place.dist / BUILT / "measurements").glob("device-*.json"))) == 1


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_measurement_that_no_worker_can_take_any_more_is_given_up(measuring, cluster, monkeypatch):
    place, _, worker, _, wait_for_kit = measuring
    cluster.start_worker("builder")
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(kits, "PATIENCE_SECONDS", 0.5)

    def kill():
        wait_for_kit()
        worker.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    result = tsexport.build_plan(place.root / "plan.toml", executor="dask", scheduler=cluster.address)
    thread.join()
    (row,) = result.rows
    assert (row.status, row.exit_code) == ("there already", 0)
    assert row.headline.not_measured == "the worker with t4=1 left the cluster, and none came for 0 s"


@pytest.mark.slow
def test_a_build_that_no_worker_can_take_any_more_is_given_up(folder, cluster, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(folder.cache))
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 0.5)
    worker = cluster.start_worker("builder")
    folder.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n')

    def kill():
        folder.wait_for_log(BUILT, "--- process")
        worker.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    result = tsexport.build_plan(folder.root / "plan.toml", executor="dask", scheduler=cluster.address)
    thread.join()
    (row,) = result.rows
    assert (row.status, row.exit_code) == ("failed", 2)
    assert row.reason == "the cluster has had no worker for 0 s that could build it"
    assert row.next_step == "start workers, and give the same command again"


@pytest.mark.slow
def test_a_build_that_every_worker_dies_of_is_a_row(folder, ending, tmp_path):
    """As often as Dask allows, here not once."""
    place = tmp_path / "cluster"
    place.mkdir()
    cluster = Cluster(place, environment={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"})
    try:
        cluster.start_scheduler()
        workers = [cluster.start_worker(name) for name in ("one", "two")]
        folder.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n')
        plan = folder.start("--executor", "dask", "--scheduler", cluster.address, "--json")
        ending.append(plan)
        folder.wait_for_log(BUILT, "--- process")
        (building,) = folder.builders(BUILT)
        next(one for one in workers if one.pid == building.parent).kill()
        ran = ended(plan)
        assert ran.code == 1
        assert ran.rows[BUILT]["reason"].startswith("the worker that had it died, once: tcp://127.0.0.1:")
        with Client(cluster.address, set_as_default=False) as client:
            future = client.submit(operator.truediv, 1, 0)
            wait_until(future.done, "a task")
            assert outcome_of(future) == ("", "its task ended with ZeroDivisionError: division by zero")
    finally:
        cluster.stop()


@pytest.mark.slow
def test_a_scheduler_that_goes_away_ends_the_plan_and_its_builds(folder, cluster, ending):
    cluster.start_worker("builder")
    folder.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n')
    plan = folder.start("--executor", "dask", "--scheduler", cluster.address)
    ending.append(plan)
    folder.wait_for_log(BUILT, "--- process")
    cluster.processes[0].kill()
    ran = ended(plan)
    assert ran.code == 2
    assert "error: the Dask scheduler went away\nstart it again and give the same command: what is " in ran.stderr
    (building,) = folder.builders(BUILT)
    wait_until(lambda: not is_alive(building.pid), "the end of the build")
