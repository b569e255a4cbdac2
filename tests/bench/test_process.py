"""Measuring processes: real ones, on real models; and what their death, silence and garbage become."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tsexport.bench.process import WORKER_COMMAND, WorkerProcess, write_feeds
from tsexport.bench.wire import (
    Block,
    Failed,
    Load,
    Loaded,
    Timed,
    Warmed,
    WarmUp,
    from_line,
    to_line,
)
from tsexport.bench.worker import DISTINCT_BATCHES, batches_of, read_feeds
from tsexport.errors import DataError, InconclusiveError, UsageError

PATIENCE_S = 300.0


def test_an_artifact_with_an_unknown_key_is_refused(short_chain):
    message = json.loads(to_line(Load(short_chain, "onnxruntime", 1, "feeds.npz", 1)))
    message["body"]["artifact"]["opsett"] = 17
    with pytest.raises(DataError, match=r"Load: artifact: unknown key 'opsett' \(did you mean 'opset'\?\)"):
        from_line(json.dumps(message))


def test_every_message_survives_its_line(short_chain):
    messages = [
        Load(short_chain, "onnxruntime", 1, "feeds.npz", 1),
        WarmUp(1, 0.05, 10, 1.0),
        Block(1, 10, 1, True),
        Loaded(1.5, 10, 20),
        Warmed(9, False, 1.0),
        Timed((1, 2, 3), 20),
        Failed("DataError", "a\nb", "do", True),
    ]
    for message in messages:
        line = to_line(message)
        assert line.count("\n") == 1
        assert from_line(line) == message


@pytest.mark.parametrize(
    "line", ["", "hello", "[]", "{}", '{"kind": "Nonsense", "body": {}}', '{"kind": [], "body": 1}']
)
def test_a_line_that_is_no_message_is_refused(line):
    with pytest.raises(DataError, match="is no message"):
        from_line(line)


def test_a_message_with_a_wrong_body_is_refused():
    with pytest.raises(DataError, match="Block: missing 'calls'"):
        from_line('{"kind": "Block", "body": {"batch": 1}}')


def test_batches_are_consecutive_samples_and_few_are_repeated():
    x = np.arange(10)[:, None]
    batches = [feeds["x"].ravel().tolist() for feeds in batches_of({"x": x}, 4)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert [len(feeds["x"]) for feeds in batches_of({"x": x}, 32)] == [32]
    assert len(list(batches_of({"x": np.zeros((1000, 1))}, 1))) == DISTINCT_BATCHES


@pytest.mark.parametrize(
    "arrays", [{}, {"x": np.zeros((0, 2))}, {"x": np.zeros(2), "y": np.zeros(3)}, {"x": np.float32(1)}]
)
def test_feeds_of_no_or_different_lengths_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "feeds.npz", **arrays)
    with pytest.raises(DataError, match="arrays of as many samples each"):
        read_feeds(tmp_path / "feeds.npz")


def test_unreadable_and_pickled_feeds_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"feeds absent\.npz cannot be read"):
        read_feeds(tmp_path / "absent.npz")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"pickled\.npz cannot be read"):
        read_feeds(tmp_path / "pickled.npz")


def test_feeds_are_written_as_they_are(tmp_path, feeds):
    read = read_feeds(write_feeds({**feeds, "file": feeds["x"]}, tmp_path))
    assert sorted(read) == ["file", "x"]
    assert np.array_equal(read["x"], feeds["x"])


def test_a_model_is_loaded_warmed_and_timed(short_chain, feeds_path):
    with WorkerProcess(short_chain, "onnxruntime", 1) as worker:
        loaded = worker.load(feeds_path, 1)
        assert 1 < loaded.load_ms < 60_000
        assert 10**7 < loaded.idle_memory_bytes < loaded.peak_memory_bytes < 10**9
        warmed = worker.warm_up(1, max_seconds=1.0)
        assert warmed.calls >= 3
        assert 0 < warmed.call_ms < 1000
        timed = worker.time_block(4, 25)
        assert len(timed.times_ns) == 25
        assert min(timed.times_ns) > 0
        assert timed.peak_memory_bytes >= loaded.peak_memory_bytes
    assert not psutil.pid_exists(worker.pid)


def test_a_warm_up_that_cannot_become_stable_is_capped(short_chain, feeds_path):
    with WorkerProcess(short_chain, "onnxruntime", 1) as worker:
        worker.load(feeds_path, 1)
        warmed = worker.warm_up(1, tolerance=0.0, max_calls=50, max_seconds=5.0)
        assert not warmed.stable
        assert warmed.calls >= 50


def test_idle_workers_use_no_cpu(long_chain, feeds_path):
    with WorkerProcess(long_chain, "onnxruntime", 2) as worker:
        worker.load(feeds_path, 1)
        worker.time_block(32, 20, quiet=True)  # without it, ONNX Runtime's second thread spins on for 50 ms
        before = sum(psutil.Process(worker.pid).cpu_times()[:2])
        time.sleep(0.5)
        assert sum(psutil.Process(worker.pid).cpu_times()[:2]) - before <= 0.02


def test_a_worker_does_not_inherit_its_parents_peak_memory(short_chain, feeds_path):
    ballast = np.ones(60_000_000)  # 480 MB, touched
    with WorkerProcess(short_chain, "onnxruntime", 1) as worker:
        assert worker.load(feeds_path, 1).peak_memory_bytes < ballast.nbytes


NOISY = """
import os
from tsexport.bench import worker
quiet = worker.load
def load(request):
    os.write(1, b'noise from C\\n')
    print('noise from Python', flush=True)
    return quiet(request)
worker.load = load
worker.main()
"""


def test_prints_of_libraries_do_not_reach_the_protocol(short_chain, feeds_path):
    with WorkerProcess(short_chain, "onnxruntime", 1, command=[sys.executable, "-c", NOISY]) as worker:
        worker.load(feeds_path, 1)
        assert len(worker.time_block(1, 3).times_ns) == 3


def test_a_runtimes_own_error_keeps_its_kind_and_names_the_artifact(short_chain, feeds_path):
    with (
        WorkerProcess(short_chain, "onnxruntimme", 1) as worker,
        pytest.raises(UsageError, match="short on onnxruntimme"),
    ):
        worker.load(feeds_path, 1)


def test_wrong_feeds_name_the_artifact(short_chain, tmp_path):
    path = write_feeds({"wrong": np.zeros((4, 128), np.float32)}, tmp_path)
    with (
        WorkerProcess(short_chain, "onnxruntime", 1) as worker,
        pytest.raises(UsageError, match="short on onnxruntime"),
    ):
        worker.load(path, 1)


def test_asking_before_loading_is_an_error(short_chain):
    with (
        WorkerProcess(short_chain, "onnxruntime", 1) as worker,
        pytest.raises(DataError, match="nothing is loaded yet"),
    ):
        worker.warm_up(1)


def test_an_unexpected_exception_is_inconclusive_and_named(short_chain, feeds_path):
    code = (
        "from tsexport.bench import worker\n"
        "def load(request): raise RuntimeError('kernel not found')\n"
        "worker.load = load\nworker.main()"
    )
    with (
        WorkerProcess(short_chain, "onnxruntime", 1, command=[sys.executable, "-c", code]) as worker,
        pytest.raises(InconclusiveError, match="short on onnxruntime raised RuntimeError: kernel not found"),
    ):
        worker.load(feeds_path, 1)


def test_a_worker_that_is_killed_says_by_which_signal(short_chain, feeds_path):
    with WorkerProcess(short_chain, "onnxruntime", 1) as worker:
        worker.load(feeds_path, 1)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(InconclusiveError, match=r"ended \(signal SIGKILL\)"):
            worker.time_block(1, 3)
        with pytest.raises(InconclusiveError, match=r"ended \(signal SIGKILL\)"):
            worker.time_block(1, 3)


def test_the_last_words_on_stderr_are_kept(short_chain, feeds_path):
    command = [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
    with (
        WorkerProcess(short_chain, "onnxruntime", 1, command=command) as worker,
        pytest.raises(InconclusiveError, match=r"ended \(exit code 1\); it wrote last:\nout of luck"),
    ):
        worker.load(feeds_path, 1)


def test_garbage_on_stdout_is_an_error(short_chain, feeds_path):
    command = [sys.executable, "-c", "print('hello', flush=True); input()"]
    with (
        WorkerProcess(short_chain, "onnxruntime", 1, command=command) as worker,
        pytest.raises(InconclusiveError, match="answered garbage: 'hello"),
    ):
        worker.load(feeds_path, 1)


def test_an_answer_to_another_question_is_an_error(short_chain, feeds_path):
    command = [sys.executable, "-c", f"print({to_line(Timed((1,), 1))!r}, flush=True); input()"]
    with (
        WorkerProcess(short_chain, "onnxruntime", 1, command=command) as worker,
        pytest.raises(InconclusiveError, match="answered Timed where Loaded was expected"),
    ):
        worker.load(feeds_path, 1)


def test_silence_is_a_timeout_and_ends_the_process(short_chain, feeds_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with WorkerProcess(short_chain, "onnxruntime", 1, command=command) as worker:
        with pytest.raises(InconclusiveError, match=r"gave no answer in 0\.5 s"):
            worker.load(feeds_path, 1, timeout_s=0.5)
        worker.close()
        assert not psutil.pid_exists(worker.pid)


def has_ended(pid):
    """Whoever inherits a process may wait for it at any moment, also between two looks at it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_ends_when_its_parent_does(short_chain):
    code = (
        "import os, subprocess; from tsexport.bench.process import WORKER_COMMAND; null = subprocess.DEVNULL;"
        "p = subprocess.Popen(WORKER_COMMAND, stdin=subprocess.PIPE, stdout=null, stderr=null);"
        "print(p.pid, flush=True); os._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, deadline = int(out.stdout), time.monotonic() + PATIENCE_S
    while not has_ended(pid):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)
    assert WORKER_COMMAND[0] == sys.executable
