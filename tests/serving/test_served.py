"""Which bundles are served and which are refused; limits, logs, the gate, and the command's own messages."""

import io
import json
import logging
import shutil
import socket
import sys
import threading

import numpy as np
import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.bundles.checksums import seal
from tsexport.bundles.golden import write_golden
from tsexport.errors import BundleError, GoldenError, MissingDependencyError, UsageError
from tsexport.serving.gate import Gate
from tsexport.serving.limits import MIB, Limits
from tsexport.serving.logs import JsonLines, RequestLog, line_of
from tsexport.serving.metrics import Metrics
from tsexport.serving.refusals import Refusal
from tsexport.serving.served import Choice, load_models, warm_up
from tsexport.serving.server import bind, listen, url_of

SECONDS = 120.0


@pytest.fixture
def copy(tiny, tmp_path):
    """A bundle to spoil."""
    return shutil.copytree(tiny, tmp_path / "copy" / "tiny")


def load(*paths, **choice):
    models = load_models(paths, Choice(**choice), Limits(), Metrics())
    for model in models.values():
        assert model.close(SECONDS)
    return {name: model.description for name, model in models.items()}


# --- bundles ---------------------------------------------------------------------------------------------------------


def test_the_selected_artifact_or_another(tiny):
    selected, fp32 = load(tiny)["tiny"], load(tiny, precision="fp32", threads=2)["tiny"]
    assert (selected.artifact, selected.precision, selected.batched, selected.threads) == (
        "int8-onnx",
        "int8",
        False,
        1,
    )
    assert (fp32.artifact, fp32.runtime, fp32.batched, fp32.threads) == ("fp32-onnx", "onnxruntime", True, 2)


def test_an_archive_is_served_under_its_name_without_the_suffix(tiny, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tiny.parent, tiny.name)
    assert list(load(archive, tiny)) == ["packed", "tiny"]


def test_a_changed_file_is_refused_also_where_it_would_not_be_loaded(copy):
    (copy / "artifacts" / "tiny-fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is not as it was written: changed: artifacts/tiny-fp32\.onnx"):
        load(copy)


def test_an_added_file_is_refused(copy):
    (copy / "more").write_text("")
    with pytest.raises(BundleError, match="is not as it was written: added: more"):
        load(copy)


def test_golden_outputs_are_checked_where_asked(copy):
    x = dict(np.load(copy / "golden" / "inputs.npz"))
    write_golden(copy, x, {"y": np.zeros((6, 3), np.float32)})
    seal(copy)
    assert load(copy, precision="fp32")
    with pytest.raises(
        GoldenError, match="fp32-onnx of the bundle tiny misses its golden outputs here: output y: "
    ) as e:
        load(copy, precision="fp32", check=True)
    assert e.value.next_step == f"do not serve it here; see `tsexport verify {copy}`"


def test_golden_outputs_that_hold(tiny, busy):
    assert list(load(tiny, busy, check=True)) == ["tiny", "busy"]


def test_two_bundles_of_one_name(tiny, copy):
    with pytest.raises(UsageError, match="two bundles are named 'tiny', and the name tells them apart") as caught:
        load(tiny, copy)
    assert caught.value.next_step == "rename one of the folders"


def test_a_bundle_that_is_refused_ends_those_before_it(busy, copy):
    (copy / "more").write_text("")
    with pytest.raises(BundleError):
        load(busy, copy)
    for thread in threading.enumerate():
        if thread.name.startswith("model-"):
            thread.join(SECONDS)  # it was told to end, and may need a moment on a busy machine
            assert not thread.is_alive()


def test_no_such_artifact(tiny):
    with pytest.raises(UsageError, match=r"nothing for precision 'fp23' \(did you mean 'fp32'\?\); it has fp32, int8"):
        load(tiny, precision="fp23")
    with pytest.raises(UsageError, match="threads is 0, allowed are 1 and more"):
        load(tiny, threads=0)


@pytest.mark.parametrize(
    ("preferred", "most", "sizes"),
    [((1, 10, 32), 32, (1, 10, 32, 2, 3)), ((), 32, (1, 2, 3, 4, 5)), ((8,), 2, (1, 2)), ((1,), 1, (1,))],
)
def test_every_compiled_model_is_made_before_the_first_request(tiny, preferred, most, sizes):
    """A session compiles for four sizes, and once for all others: the fifth."""
    with tsexport.load(tiny, precision="fp32") as session:
        assert warm_up(session, {"x": np.zeros((3, 4), np.float32)}, preferred, most) == sizes
        compiled = dict(session._compiled)
        session.run({"x": np.zeros((7, 4), np.float32)})
        assert most < 7 or session._compiled == compiled


# --- limits and the gate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0, allowed are 1 and more"),
        ({"max_queue": -1}, "max_queue is -1, allowed are 1 and more"),
        ({"max_request_bytes": 0}, "max_request_bytes is 0, allowed are 1 and more"),
        ({"max_json_bytes": 0}, "max_json_bytes is 0, allowed are 1 and more"),
        ({"batch_delay_ms": -1.0}, "batch_delay_ms is -1, allowed are 0 and more"),
        ({"batch_delay_ms": float("nan")}, "batch_delay_ms is nan, allowed are 0 and more"),
        ({"timeout_s": 0.0}, "timeout_s is 0, allowed is any time above 0"),
        ({"timeout_s": float("inf")}, "timeout_s is inf, allowed is any time above 0"),
    ],
)
def test_limits_that_make_no_sense(limit, message):
    with pytest.raises(UsageError, match=message):
        Limits(**limit)


def test_a_gate_counts_and_closes():
    gate = Gate(3 * MIB)
    gate.enter(MIB)
    gate.enter(2 * MIB)
    with pytest.raises(Refusal, match="2 requests in flight hold 3 MiB; try again later") as caught:
        gate.enter(1)
    assert caught.value.status == 429
    gate.leave(MIB)
    assert (gate.in_flight, gate.drained, gate.draining) == (1, False, False)
    gate.enter(MIB)
    gate.begin_drain()
    assert (gate.drained, gate.draining) == (False, True)
    with pytest.raises(Refusal, match="the server is shutting down") as caught:
        gate.enter(0)
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("headers", "size_bytes"),
    [
        ({b"content-length": b"10"}, 64 * 1024),
        ({b"content-length": b"100000"}, 100_000),
        ({b"content-length": b"9" * 30}, MIB),
        ({b"content-length": b"10", b"content-encoding": b"gzip"}, MIB),
        ({b"content-length": b"-1"}, MIB),
        ({b"transfer-encoding": b"chunked"}, MIB),
        ({b"transfer-encoding": b"chunked", b"content-length": b"2"}, MIB),
        ({b"content-length": b"2", b"transfer-encoding": b"chunked"}, MIB),
    ],
)
def test_what_a_body_counts_before_it_is_read(headers, size_bytes):
    limits = Limits(max_request_bytes=MIB)
    assert limits.held_bytes(headers.items()) == size_bytes
    assert limits.max_held_bytes() == 256 * MIB
    assert Limits(max_request_bytes=512 * MIB).max_held_bytes() == 512 * MIB


# --- logs ------------------------------------------------------------------------------------------------------------


def test_a_line_holds_what_is_known_and_nothing_can_break_out_of_it():
    record = logging.LogRecord("tsexport.serving", logging.INFO, "", 0, "request", (), None)
    record.fields = RequestLog("POST", "/predict", 422, 1.5, id='a"\nb\u2028\ud800')
    line = line_of(record)
    assert line.isascii()
    assert line.count("\n") == 1
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == {
        "level": "info", "event": "request", "method": "POST", "route": "/predict", "status": 422, "duration_ms": 1.5,
        "id": 'a"\nb\u2028\ud800',
    }  # fmt: skip


def test_a_bug_is_logged_with_its_traceback():
    try:
        raise ZeroDivisionError("seven by nought")
    except ZeroDivisionError:
        record = logging.LogRecord("other", logging.ERROR, "", 0, "bug", (), sys.exc_info())
    document = json.loads(line_of(record))
    assert (document["level"], document["logger"]) == ("error", "other")
    assert "ZeroDivisionError: seven by nought" in document["traceback"]


class Blocked(io.StringIO):
    """A stderr that nobody reads, until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go, self.entered = threading.Event(), threading.Event()

    def write(self, text):
        self.entered.set()
        assert self.let_go.wait(SECONDS)
        return super().write(text)


def test_a_stderr_that_nobody_reads_holds_up_nothing():
    stream = Blocked()
    lines = JsonLines(stream, max_lines=2)
    record = logging.LogRecord("x", logging.INFO, "", 0, "event", (), None)
    lines.emit(record)
    assert stream.entered.wait(SECONDS)
    for _ in range(5):
        lines.emit(record)
    assert lines.lost == 3
    lines.end(0.01)  # comes back, though nothing can be written
    stream.let_go.set()
    lines.end(SECONDS)
    assert stream.getvalue().count("\n") == 3


def test_a_stderr_that_was_closed_is_no_error():
    stream = io.StringIO()
    stream.close()
    lines = JsonLines(stream)
    lines.emit(logging.LogRecord("x", logging.INFO, "", 0, "event", (), None))
    lines.end(SECONDS)
    assert lines.lost == 1


# --- the address -----------------------------------------------------------------------------------------------------


def test_a_free_port_and_its_url():
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound, "127.0.0.1") == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert url_of(bound, "::1").startswith("http://[::1]:")


def test_a_port_that_is_taken(tiny, command_line):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = command_line(tiny, "--port", port)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the server cannot listen on 127.0.0.1, port {port}: Address already in use\n"
        "give another --host or --port; --port 0 takes a free one\n"
    )
    assert done.stdout == ""


def test_a_port_that_is_taken_while_models_are_loaded():
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with bind("127.0.0.1", port) as other:
            listen(bound, "127.0.0.1", port)
            with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
                listen(other, "127.0.0.1", port)


def test_no_such_host():
    with pytest.raises(UsageError, match=r"the server cannot listen on no\.such\.host\.invalid, port 0: "):
        bind("no.such.host.invalid", 0)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_not_served(copy, command_line):
    (copy / "README.md").write_text("other")
    done = command_line(copy, "--port", "0", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the bundle tiny is not as it was written: added: README.md")
    assert done.stdout == ""


def test_a_missing_extra_is_named(tiny, command_line):
    done = command_line(tiny, prelude="sys.modules.update(fastapi=None, uvicorn=None)")
    assert done.returncode == 2
    assert done.stderr == (
        'error: tsexport serve needs fastapi, uvicorn, not installed here\npip install "tsexport[serve]"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'BUNDLE...'"),
        (["nothing"], "there is no bundle nothing"),
        (["nothing", "--port", "70000"], "70000 is not in the range 0<=x<=65535"),
        (["nothing", "--max-batch", "0"], "max_batch is 0, allowed are 1 and more"),
        (["nothing", "--timeout", "-1"], "timeout_s is -1, allowed is any time above 0"),
        (["nothing", "--max-json-mib", "0"], "--max-json-mib is 0; allowed are sizes above 0, for example 16"),
        (["nothing", "--max-request-mib", "nan"], "--max-request-mib is nan; allowed are sizes above 0"),
    ],
)
def test_wrong_usage(arguments, message):
    result = CliRunner().invoke(cli.main, ["serve", *arguments], prog_name="tsexport")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_runtime(tiny, monkeypatch):
    from tsexport.runtimes import registry

    monkeypatch.setattr(registry, "_is_installed", lambda package: False)
    with pytest.raises(MissingDependencyError, match="int8-onnx runs on onnxruntime, which is not usable here"):
        load(tiny)
