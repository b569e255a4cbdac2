"""`--executor dask`: the same plan on a cluster of real workers."""

import re
import shutil

import pytest
from clusters import device_environment, write_trtexec
from plan_folders import Folder

import tsexport
from tsexport.errors import UsageError
from tsexport.plans import on_dask
from tsexport.plans.cluster import Worker, builders, resource_for
from tsexport.plans.kits import attach_kit_run, device_resources, needs_measuring, resources_of
from tsexport.plans.records import Job, KitRun, MeasureJob, Row
from tsexport.plans.tasks import build_task, from_text, measure_task, to_text
from tsexport.targets import parse_target

BUILT = "linear-t4-fp32"
ONE = '[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n'


@pytest.fixture
def emptied(again) -> Folder:
    """A folder with a plan of one build, whose stages are in the cache and whose bundle is not there."""
    shutil.rmtree(again.dist)
    again.write(ONE)
    return again


def test_a_plan_on_processes_of_this_machine(emptied):
    """The whole way with what is in the cache: a cluster, its workers, a build, and no worker with a t4."""
    ran = emptied.run("--executor", "dask", "--jobs", "2", "--json")
    assert ran.code == 0, ran.stderr
    row = ran.rows[BUILT]
    assert (row["status"], row["exit_code"], ran.document["executor"]) == ("built", 0, "dask")
    assert row["headline"]["latency"] is None
    assert row["headline"]["not_measured"] == "no worker of the cluster carries the resource t4=1"
    assert "2 workers: 2 threads, no resources" in ran.stderr.splitlines()
    assert re.search(rf"\[ 1/1 done\] {BUILT}: not measured: no worker of the cluster carries", ran.stderr)
    assert emptied.builds_of(BUILT) == 1
    assert emptied.leftovers() == []


@pytest.mark.slow
def test_a_worker_with_the_device_measures_and_the_results_are_attached(emptied, cluster, tmp_path):
    cluster.start_worker("builder")
    cluster.start_device_worker("device", "jetson=1,t4=1", write_trtexec(tmp_path))
    options = ("--executor", "dask", "--scheduler", cluster.address, "--json")
    ran = emptied.run(*options)
    assert ran.code == 0, ran.stderr
    latency = ran.rows[BUILT]["headline"]["latency"]
    assert (latency["device"], latency["runtime"], latency["batch"]) == ("Tesla T4", "tensorrt 10.3.0", 1)
    assert latency["p50_ms"] == pytest.approx(2.5 * 1.045 + 0.25, rel=0.02)  # 1.00 to 1.09 of it, and the copies
    assert "2 workers: 2 threads, jetson on 1, t4 on 1" in ran.stderr.splitlines()
    assert f"[ 1/1 done] {BUILT}: measured: p50 2." in ran.stderr
    again = emptied.run(*options)
    assert again.statuses == {BUILT: "there already"}
    assert again.rows[BUILT]["headline"]["latency"] == latency
    assert len(list((emptied.dist / BUILT / "measurements").glob("device-*.json"))) == 1
    assert len(list((emptied.state / "results").iterdir())) == 1
    assert tsexport.verify(emptied.dist / BUILT).passed


# --- who does what


def test_builds_go_to_builders_else_to_workers_without_a_device_else_to_all():
    plain, device, named = Worker("a", 1, {}), Worker("b", 1, {"t4": 1}), Worker("c", 2, {"build": 2, "t4": 1})
    devices = frozenset({"t4"})
    assert builders([plain, device, named], devices) == (named,)
    assert builders([plain, device], devices) == (plain,)
    assert builders([device], devices) == (device,)
    assert builders([], devices) == ()


def test_a_device_is_carried_by_its_own_name_or_its_familys():
    assert resources_of(parse_target("t4-fp16")) == ("t4",)
    assert resources_of(parse_target("jetson-int8", "xavier-nx")) == ("xavier-nx", "jetson")
    workers = [Worker("a", 1, {"jetson": 1}), Worker("b", 1, {"xavier-nx": 1, "t4": 0})]
    assert resource_for(workers, ("xavier-nx", "jetson")) == "xavier-nx"
    assert resource_for(workers, ("orin-nano", "jetson")) == "jetson"
    assert resource_for(workers, ("t4",)) is None
    assert {"t4", "a100", "jetson", "orin-nano"} <= device_resources()


# --- what a worker is asked, without a cluster


@pytest.fixture
def job(emptied, tmp_path):
    """What a worker is told of the session's bundle, whose plan runs."""
    running = tmp_path / "running"
    running.touch()
    return MeasureJob(emptied.root / "bundle" / BUILT, tmp_path / "results", tmp_path / "turns", running)


@pytest.fixture
def kit(job, first_run, monkeypatch):
    """A bundle with its device kit, and no trtexec."""
    place, _ = first_run
    shutil.copytree(place.dist / BUILT, job.bundle)
    monkeypatch.setenv("TRTEXEC", "/nonexistent/trtexec")
    return job


def reason_of(job):
    run = from_text(KitRun, measure_task(to_text(job)))
    assert run.results is None
    assert not job.results.exists()
    return run.reason


def test_a_worker_without_tensorrt_says_so(kit):
    assert reason_of(kit) == "build_engine.sh: trtexec was not found at /nonexistent/trtexec"


def test_a_kit_that_fails_says_what_it_said(kit, monkeypatch, tmp_path):
    monkeypatch.setenv("TRTEXEC", str(write_trtexec(tmp_path, "echo 'out of memory' >&2; exit 3")))
    assert reason_of(kit).startswith("build_engine.sh: neither ")


def test_a_bundle_without_a_kit_says_so(kit):
    shutil.rmtree(kit.bundle / "device")
    assert reason_of(kit) == f"{BUILT} has no device kit, since it holds no ONNX file for TensorRT"


def test_a_worker_without_bash_says_so(kit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason_of(kit) == "build_engine.sh: bash does not run here (No such file or directory)"


def test_a_kit_ends_with_its_plan(kit, monkeypatch, tmp_path):
    monkeypatch.setenv("TRTEXEC", str(write_trtexec(tmp_path, f"rm -f '{kit.running}'; sleep 600")))
    assert reason_of(kit) == "build_engine.sh: the plan ended"


def test_results_of_another_device_are_not_attached(kit, monkeypatch, tmp_path):
    """A worker that says it carries a t4 and does not: what it measured is kept, and the row says so."""
    for name, value in device_environment(write_trtexec(tmp_path), "NVIDIA A100-SXM4-40GB", "8.0").items():
        monkeypatch.setenv(name, value)
    run = from_text(KitRun, measure_task(to_text(kit)))
    assert run.results.parent == kit.results
    assert not (run.results / "engine.plan").exists()
    reason = attach_kit_run(row_of(kit), run)
    assert reason.startswith("what its worker measured is not attached: the results are of NVIDIA A100-SXM4-40GB (comp")
    assert reason.endswith(f" (it is in {run.results})")


def test_results_of_the_device_are_attached(kit, monkeypatch, tmp_path):
    for name, value in device_environment(write_trtexec(tmp_path)).items():
        monkeypatch.setenv(name, value)
    row = row_of(kit)
    assert needs_measuring(row, parse_target("t4-fp32"))
    assert attach_kit_run(row, from_text(KitRun, measure_task(to_text(kit)))) == ""
    assert not needs_measuring(row, parse_target("t4-fp32"))
    assert attach_kit_run(row, KitRun(None, "no trtexec")) == "no trtexec"


def row_of(kit):
    return Row(BUILT, "linear", "t4-fp32", "host", str(kit.bundle), "built")


def test_a_build_whose_plan_has_ended_is_not_begun(emptied, tmp_path):
    from tsexport.options import BuildOptions

    options = BuildOptions("linear", "t4-fp32", tmp_path / "dist")
    row = from_text(Row, build_task(to_text(Job(BUILT, options, tmp_path, tmp_path / "cache", tmp_path / "none"))))
    assert (row.status, row.exit_code) == ("failed", 1)
    assert row.reason.startswith("the plan ended, or ")
    assert row.reason.endswith(f" does not see {tmp_path}")


# --- clusters that cannot be used


def refused(place, monkeypatch, address, message):
    monkeypatch.setenv("TSEXPORT_CACHE", str(place.cache))
    with pytest.raises(UsageError) as caught:
        tsexport.build_plan(place.root / "plan.toml", executor="dask", scheduler=address)
    assert message in caught.value.message
    return caught.value.next_step


def test_no_scheduler(emptied, monkeypatch):
    monkeypatch.setattr(on_dask, "CONNECT_SECONDS", 0.5)
    address = "tcp://127.0.0.1:9"
    step = refused(emptied, monkeypatch, address, f"no Dask scheduler answers at {address}: ")
    assert step == "start one with `dask scheduler`, and give the address that it prints"


def test_no_workers(emptied, monkeypatch, cluster):
    monkeypatch.setattr(on_dask, "WORKERS_SECONDS", 0.5)
    address = cluster.address
    step = refused(emptied, monkeypatch, address, f"the Dask scheduler at {address} has no worker")
    assert step == f"start some with `dask worker {address}`, on machines that share the folders"


def test_workers_that_cannot_be_given_work(emptied, monkeypatch, cluster, tmp_path):
    cluster.start_worker("builder")

    def check(name, value, message):
        with monkeypatch.context() as patch:
            patch.setattr(on_dask, name, value)
            return refused(emptied, patch, cluster.address, message)

    def not_installed(paths):
        raise ModuleNotFoundError("No module named 'tsexport'")

    def unseen(paths):
        from tsexport.plans.tasks import look_around

        return look_around([*paths, "/nonexistent/seen"])

    def incomplete(paths):
        from dataclasses import replace

        from tsexport.plans.records import Surroundings
        from tsexport.plans.tasks import from_text, look_around, to_text

        return to_text(replace(from_text(Surroundings, look_around(paths)), missing="building needs nncf"))

    step = check("look_around", not_installed, "cannot be given work: ModuleNotFoundError: No module named 'tsexport'")
    assert step == "install this version of tsexport with the extra dask there"
    step = check("look_around", unseen, "does not see /nonexistent: the output and the cache folder have to be shared")
    assert step == "name an output folder that all workers share with -o, and a cache folder with TSEXPORT_CACHE"
    step = check("look_around", incomplete, "cannot build: building needs nncf")
    assert step == "install them there, or start those that build with --resources build=1"
    step = check("code_digest", lambda: "0", "runs another tsexport than this one")
    assert step == "install the same version there"
    step = check("tool_versions", lambda: {"torch": "0"}, "has other versions of ")
    assert step == "install the same versions there, or start those that build with --resources build=1"
    assert not emptied.dist.exists() or not list(emptied.dist.glob("linear*"))


def test_a_cache_that_cannot_be_written(emptied, monkeypatch, cluster, tmp_path):
    cluster.start_worker("builder")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(on_dask, "default_root", lambda: tmp_path / "file")
    step = refused(emptied, monkeypatch, cluster.address, f"{tmp_path / 'file'} cannot be written: File exists")
    assert step.startswith("name an output folder that all workers share")


def test_without_the_extra(emptied, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    step = refused(emptied, monkeypatch, "tcp://a:1", "--executor dask needs distributed, not installed here")
    assert step == 'pip install "tsexport[dask]"'


def test_no_cluster_is_asked_where_nothing_is_to_be_done(again, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(again.cache))
    again.write('[[builds]]\nmodel = "linear"\ntarget = "t4-bf16"\n')
    result = tsexport.build_plan(again.root / "plan.toml", executor="dask", scheduler="tcp://127.0.0.1:9")
    assert (result.exit_code, result.executor) == (5, "dask")
