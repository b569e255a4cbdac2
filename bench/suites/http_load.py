"""A server of `tsexport serve` in a process of its own, and what puts load on it: wrk, a paced client, single calls."""

import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tsexport.bench.statistics import P99_SAMPLES, Summary, samples_needed, summarize
from tsexport.errors import InconclusiveError, UsageError
from tsexport.types import Array, Closing

JSON, BINARY = "application/json", "application/octet-stream"
_REPORTED = "wrk-result "
_LUA = """
function init(args)
  local file = io.open(args[1], "rb")
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = args[2]
  if args[3] then wrk.headers["Inference-Header-Content-Length"] = args[3] end
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '%s{"requests": %d, "seconds": %.6f, "status_errors": %d, "socket_errors": %d, ' ..
    '"p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\\n',
    "wrk-result ", summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


@dataclass(frozen=True)
class Call:
    """One request, as it is repeated.  `header_length` is that of the JSON before binary tensors."""

    name: str
    path: str
    body: bytes
    content_type: str
    header_length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        length = {} if self.header_length is None else {"Inference-Header-Content-Length": str(self.header_length)}
        return {"Content-Type": self.content_type, **length}


@dataclass(frozen=True)
class Load:
    """What wrk counted with a fixed number of connections, each sending its next request when it has an answer.

    A percentile is None where the requests are too few for it.  `growth_bytes` is the server's resident memory after
    the load less that before, when it had been warmed up by the same load.
    """

    call: str
    connections: int
    seconds: float
    requests: int
    errors: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float
    memory_bytes: int
    growth_bytes: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class PacedLoad:
    """A load of so many requests a second, and the processor time it took, in percent of one core."""

    requests_per_s: float
    seconds: float
    cpu_percent_of_a_core: float


def calls_of(model: str, feeds: Mapping[str, Array]) -> tuple[Call, Call, Call]:
    """Return one inference as `/predict`, and as the protocol's with JSON and with binary tensors."""
    predict = json.dumps({"inputs": {name: array.tolist() for name, array in feeds.items()}}).encode()
    path, datatypes = f"/v2/models/{model}/infer", {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
    plain, binary, blobs = [], [], []
    for name, array in feeds.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatypes[array.dtype.name], "shape": list(array.shape)}
        plain.append({**tensor, "data": array.ravel().tolist()})
        binary.append({**tensor, "parameters": {"binary_data_size": array.nbytes}})
        blobs.append(array.tobytes())
    head = json.dumps({"inputs": binary, "parameters": {"binary_data_output": True}}).encode()
    return (
        Call("/predict", "/predict", predict, JSON),
        Call("V2, JSON", path, json.dumps({"inputs": plain}).encode(), JSON),
        Call("V2, binary", path, head + b"".join(blobs), BINARY, len(head)),
    )


class ServerProcess(Closing):
    """`tsexport serve` on a free port, with its own defaults; its log goes to a file.  A context manager."""

    def __init__(self, bundle: Path, folder: Path, *options: str) -> None:
        self._log = folder / f"serve-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "tsexport", "serve", str(bundle), "--port", "0", "--json", *options]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._folder = folder

    def start(self) -> Mapping[str, Any]:
        """Wait until requests are taken; return what it says of its model.

        Raises:
            InconclusiveError: it ended instead.
        """
        assert self._process.stdout is not None
        text = ""
        while not text.endswith("\n}\n") and (line := self._process.stdout.readline()):
            text += line
        if not text:
            raise InconclusiveError(f"the server did not start: {self._log.read_text()[-500:]}")
        document = json.loads(text)
        self.url: str = document["url"]
        model: Mapping[str, Any] = document["models"][0]
        return model

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's process."""
        found: int = psutil.Process(self._process.pid).memory_info().rss
        return found

    def cpu_seconds(self) -> float:
        """Return the processor time of the server's process so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def load(self, call: Call, *, connections: int, seconds: float, warmup_seconds: float) -> Load:
        """Put load on it.

        Raises:
            InconclusiveError: wrk or the server ended early.
        """
        self._wrk(call, connections, warmup_seconds)
        before = self.memory_bytes()
        found = self._wrk(call, connections, seconds)
        after, requests = self.memory_bytes(), int(found["requests"])

        def when(quantile: float, key: str) -> float | None:
            return float(found[key]) if requests >= samples_needed(quantile) else None

        return Load(
            call=call.name,
            connections=connections,
            seconds=float(found["seconds"]),
            requests=requests,
            errors=int(found["status_errors"]) + int(found["socket_errors"]),
            p50_ms=when(0.50, "p50_ms"),
            p90_ms=when(0.90, "p90_ms"),
            p99_ms=when(0.99, "p99_ms"),
            max_ms=float(found["max_ms"]),
            memory_bytes=after,
            growth_bytes=after - before,
        )

    def one_after_another(self, call: Call, calls: int = P99_SAMPLES) -> Summary:
        """Return the latencies of calls on one connection, each sent when the one before is answered."""
        samples_ms = []
        with closing(self._connect()) as connection:
            for number in range(calls + calls // 10):  # the first tenth warms up
                started = time.perf_counter()
                self._once(connection, call)
                if number >= calls // 10:
                    samples_ms.append(1000 * (time.perf_counter() - started))
        return summarize(samples_ms)

    def paced(self, call: Call, requests_per_s: float, seconds: float) -> PacedLoad:
        """Send a request every so often, and return the processor time that the server took meanwhile."""
        with closing(self._connect()) as connection:
            began, used = time.perf_counter(), self.cpu_seconds()
            for number in range(int(requests_per_s * seconds)):
                time.sleep(max(0.0, began + number / requests_per_s - time.perf_counter()))
                self._once(connection, call)
            time.sleep(max(0.0, began + seconds - time.perf_counter()))
            passed = time.perf_counter() - began
        return PacedLoad(requests_per_s, passed, 100 * (self.cpu_seconds() - used) / passed)

    def answer(self, call: Call) -> Any:
        """Return the document that answers one call in JSON."""
        with closing(self._connect()) as connection:
            return json.loads(self._once(connection, call))

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)

    def _once(self, connection: http.client.HTTPConnection, call: Call) -> bytes:
        connection.request("POST", call.path, call.body, call.headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise InconclusiveError(f"{call.name} was answered {response.status}: {body[:200].decode()}")
        return body

    def _wrk(self, call: Call, connections: int, seconds: float) -> Mapping[str, Any]:
        script, body = self._folder / "post.lua", self._folder / "body"
        script.write_text(_LUA)
        body.write_bytes(call.body)
        length = () if call.header_length is None else (str(call.header_length),)
        command = [
            find_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s",
            str(script), self.url + call.path, "--", str(body), call.content_type, *length,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith(_REPORTED)]
        if done.returncode or not lines:
            raise InconclusiveError(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
        result: Mapping[str, Any] = json.loads(lines[0].removeprefix(_REPORTED))
        return result

    def close(self) -> None:
        """End the server: politely first."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def find_wrk() -> str:
    """Return where wrk is.

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise UsageError("the load is made with wrk, which is not installed", next_step="apt install wrk")
    return found


def same_answer(document: Mapping[str, Any], expected: Mapping[str, Array], tolerance: float) -> bool:
    """Return whether `/predict` answered as the session does, relative to the largest value of each output."""
    outputs = document["outputs"]
    return outputs.keys() == expected.keys() and all(
        np.abs(np.asarray(outputs[name]) - array).max() <= tolerance * max(1e-6, float(np.abs(array).max()))
        for name, array in expected.items()
    )


def rates_of(spans: Sequence[str]) -> tuple[float, ...]:
    """Return the middle of each span of requests a second, as the latency tables write them ("5-10")."""
    return tuple(sum(map(float, span.split("-"))) / len(span.split("-")) for span in spans)
