"""Plans that are interrupted, killed, or run twice at once: nothing half-written stays, and what was done is kept."""

import os
import signal
import subprocess
import sys

import pytest
from plan_folders import PATIENCE_S, ended, is_alive, wait_until

import tsexport
from tsexport.turns import Turns

FIRST, SECOND = "linear-t4-fp32", "linear-a100-fp32"
TWO = '[matrix]\nmodels = ["linear"]\ntargets = ["t4-fp32", "a100-fp32"]\n'


def wait_for_ends(folder, *names):
    pids = [one.pid for name in names for one in folder.builders(name)]
    wait_until(lambda: not any(map(is_alive, pids)), f"the end of {pids}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
@pytest.mark.parametrize("executor", ["local", "dask"])
def test_a_plan_that_is_ended_ends_its_builds_and_goes_on_where_it_was(folder, ending, executor, how):
    folder.write(TWO)
    plan = folder.start("--jobs", "2", "--executor", executor)
    ending.append(plan)
    folder.wait_for_log(FIRST, "] export ONNX: ")
    plan.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    ran = ended(plan)
    wait_for_ends(folder, FIRST, SECOND)
    assert "--- interrupted" in folder.log(FIRST)
    assert not list(folder.dist.glob("*/manifest.json"))
    if how == "Ctrl-C":
        assert (ran.code, ran.stdout) == (130, "")
        assert ran.stderr.endswith("interrupted\n")
        assert "Traceback" not in ran.stderr
        assert folder.leftovers() == []
        assert not list(folder.state.glob("running-*"))

    again = folder.run("--json")
    assert again.code == 0, again.stderr
    assert again.statuses == {FIRST: "built", SECOND: "built"}
    assert folder.leftovers() == []
    # What was finished before is not done again.
    assert "] export ONNX: reused" in folder.log(FIRST).rpartition("--- process ")[2]
    assert tsexport.verify(folder.dist / FIRST).passed


@pytest.mark.slow
def test_a_build_whose_process_is_killed_holds_nobody_up(folder, ending):
    folder.write(TWO)
    plan = folder.start("--jobs", "2", "--json")
    ending.append(plan)
    folder.wait_for_log(FIRST, "] model and data: ")
    os.kill(folder.builders(FIRST)[0].pid, signal.SIGKILL)
    ran = ended(plan)
    assert ran.code == 1
    assert ran.statuses == {FIRST: "failed", SECOND: "built"}
    assert ran.rows[FIRST]["reason"].startswith(
        "its process ended by SIGKILL, as the kernel does where memory runs out"
    )
    again = folder.run("--json")
    assert again.statuses == {FIRST: "built", SECOND: "there already"}
    assert (folder.builds_of(FIRST), folder.builds_of(SECOND)) == (1, 1)


@pytest.mark.slow
def test_two_plans_of_the_same_bundles_at_once_build_each_once(folder, ending):
    folder.write(TWO)
    plans = [folder.start("--jobs", "2", "--json") for _ in range(2)]
    ending += plans
    rans = [ended(plan) for plan in plans]
    assert [ran.code for ran in rans] == [0, 0], [ran.stderr for ran in rans]
    for name in (FIRST, SECOND):
        assert sorted(ran.statuses[name] for ran in rans) == ["built", "there already"]
        assert folder.builds_of(name) == 1
        assert len(folder.builders(name)) == 2
        assert tsexport.verify(folder.dist / name).passed
    assert folder.leftovers() == []


@pytest.mark.slow
def test_two_builds_of_the_same_bundle_at_once_do_not_harm_each_other(folder, ending):
    command = [
        sys.executable, "-m", "tsexport", "build", "linear", "--target", "t4-fp32", "-o", "dist", "--formats", "onnx",
        "--set", "context_length=8", "--set", "horizon=4", "--set", "channels=2", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "TSEXPORT_CACHE": str(folder.cache)}
    builds = [
        subprocess.Popen(
            command, cwd=folder.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ending += builds
    first, second = sorted((ended(build) for build in builds), key=lambda ran: ran.code)
    assert first.code == 0, first.stderr
    # The other one finds the bundle in its place and leaves it there, as a single build does.
    assert second.code == 2, second.stderr
    assert "linear-t4-fp32 is there already" in second.stderr
    assert tsexport.verify(folder.dist / FIRST).passed
    assert [path.name for path in folder.dist.iterdir()] == [FIRST]


@pytest.mark.slow
def test_a_factory_whose_source_changed_is_built_again(folder):
    (folder.root / "mine.py").write_text(
        "import torch\n\ndef make(**settings):\n    torch.manual_seed(0)\n"
        "    module = torch.nn.Linear(4, 3)\n    module.example_inputs = {'x': torch.zeros(2, 4)}\n    return module\n"
    )
    folder.write(
        '[[builds]]\nmodel = "mine.py:make"\ntarget = "t4-fp32"\ninputs = [{ name = "x", shape = ["batch", 4] }]\n'
    )
    name = "make-t4-fp32"
    assert folder.run("--json").statuses == {name: "built"}
    assert folder.run("--json").statuses == {name: "there already"}
    source = folder.root / "mine.py"
    source.write_text(source.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    assert folder.run("--json").statuses == {name: "built"}


@pytest.mark.slow
def test_what_measures_waits_for_its_turn_and_says_so(folder, ending, bundle_folder):
    """A build, `bench` and `compare`, while somebody else measures."""
    environment = {**os.environ, "TSEXPORT_CACHE": str(folder.cache)}

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "tsexport", *map(str, arguments)],
            cwd=folder.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        ending.append(process)
        return process

    started = []
    with Turns(folder.cache).measuring("a race of a test"):
        started.append(start("bench", bundle_folder, "--batch", "1", "--seconds", "0.1", "--threads", "1"))
        started.append(start("compare", bundle_folder, bundle_folder, "--max-seconds", "1"))
        started.append(start("build", "linear", "--target", "cpu4-fp32", "-o", "dist", "--formats", "onnx",
                             "--seconds", "0.05", "--batch", "1", "--threads", "1"))  # fmt: skip
        for process in started:
            line = next(line for line in process.stderr if "waiting for a turn" in line)
            assert f"process {os.getpid()} measures a race of a test" in line
            assert process.poll() is None
    for process, codes in zip(started, ((6,), (0, 6), (0,)), strict=True):
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in codes, stderr
