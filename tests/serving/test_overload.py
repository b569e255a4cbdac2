"""Too much, too slow, and the end: 429, 408, and SIGTERM while an inference runs."""

import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

STEPS = 1000
END_SECONDS = 10.0


def post(server, path, body, timeout=60.0):
    """Return (status, document, headers) of a request on a connection of its own."""
    connection = http.client.HTTPConnection(server.address, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def get(server, path):
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def body_of(steps):
    return {"inputs": {"x": [[0, 0, 0, 0]], "steps": [[steps]], "flag": [[True]]}}


def infer_body(steps, **parameters):
    tensors = [
        {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]},
        {"name": "steps", "datatype": "INT64", "shape": [1, 1], "data": [steps]},
        {"name": "flag", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
    ]
    return {"inputs": tensors, "parameters": parameters}


def steps_for(server, seconds):
    """Return how many steps make an inference take so long on this machine, as it is now."""
    started = time.perf_counter()
    assert post(server, "/predict", body_of(STEPS))[0] == 200
    return int(STEPS * seconds / (time.perf_counter() - started))


def in_flight(server):
    """Return how many POST requests the server is at."""
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    (line,) = [line for line in lines if line.startswith("tsexport_in_flight ")]
    return float(line.split()[1])


def wait_until(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.025)
    raise AssertionError("it did not come about")


@pytest.mark.slow
def test_more_than_can_wait_is_answered_429_at_once_and_the_rest_is_answered(serve, busy):
    with serve(busy, "--max-queue", "2", "--max-batch", "1") as server:
        long = steps_for(server, 4.0)
        with ThreadPoolExecutor(24) as pool:
            first = pool.submit(post, server, "/predict", body_of(long))
            wait_until(lambda: in_flight(server) == 1)
            rest = [pool.submit(post, server, "/predict", body_of(0)) for _ in range(20)]
            refused = [one.result() for one in rest if one.result()[0] != 200]
        statuses = [one.result()[0] for one in rest]
        assert first.result()[0] == 200
        assert statuses.count(200) == 2  # those that could wait
        assert statuses.count(429) == 18
        for _, document, headers in refused:
            assert headers["Retry-After"] == "1"
            assert document["error"] == "2 requests wait for busy, and no more may; try again later"
        assert post(server, "/predict", body_of(0))[0] == 200  # and it goes on


@pytest.mark.slow
def test_an_answer_that_comes_too_late(serve, busy):
    """The client is told; what waits behind is answered once the model is free, what timed out waiting never runs."""
    with serve(busy, "--timeout", "2") as server:
        long = steps_for(server, 5.0)
        status, document, headers = post(server, "/predict", body_of(long))
        assert status == 408
        assert document["error"] == "no answer within 2 s"
        assert headers["Connection"] == "close"
        wait_until(lambda: post(server, "/predict", body_of(0))[0] == 200)
        status, document, _ = post(server, "/v2/models/busy/infer", infer_body(long, timeout=500_000))
        assert (status, document["error"]) == (408, "no answer within 0.5 s")


def test_a_body_that_does_not_come(serve, tiny):
    with serve(tiny, "--timeout", "0.5") as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
            answer = b""
            while part := connection.recv(4096):  # to its end: the server closes
                answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b'{"error":"no answer within 0.5 s"}')


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load(serve, busy, sent):
    """What is in flight is answered, what is new is refused, and the end comes in time with code 0."""
    with serve(busy, "--max-batch", "1") as server:
        long = steps_for(server, 2.5)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(post, server, "/predict", body_of(steps)) for steps in (long, 0, 1)]
            wait_until(lambda: in_flight(server) == 3)
            server.process.send_signal(sent)
            began = time.perf_counter()
            wait_until(lambda: get(server, "/v2/health/ready") == (503, {"ready": False}))
            assert get(server, "/v2/health/live") == (200, {"live": True})
            assert get(server, "/health") == (503, {"status": "shutting down", "models": {"busy": "active"}})
            assert get(server, "/v2") == (503, {"error": "the server is shutting down"})
            status, document, headers = post(server, "/predict", body_of(0))
            assert (status, document) == (503, {"error": "the server is shutting down"})
            assert (headers["Retry-After"], headers["Connection"]) == ("1", "close")
            assert server.process.wait(END_SECONDS) == 0
            assert time.perf_counter() - began < END_SECONDS
        assert [one.result()[0] for one in asked] == [200, 200, 200]
        events = [line["event"] for line in server.log() if line["event"] != "request"]
        assert events == ["ready", "shutting down", "closed"]


@pytest.mark.slow
def test_an_inference_that_does_not_end_does_not_hold_up_the_end(serve, busy):
    with serve(busy) as server:
        steps = steps_for(server, 60.0)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(post, server, "/predict", body_of(steps))
            wait_until(lambda: in_flight(server) == 1)
            server.process.terminate()
            began = time.perf_counter()
            assert server.process.wait(END_SECONDS) == 0
            assert time.perf_counter() - began < END_SECONDS
            assert future.result()[:2] == (503, {"error": "the server is shutting down"})
        assert server.wait_for_line(lambda line: line["event"] == "closed")["in_flight"] == 1


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(serve, busy):
    with serve(busy) as server:
        steps = steps_for(server, 30.0)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(post, server, "/predict", body_of(steps))
            wait_until(lambda: in_flight(server) == 1)
            server.process.terminate()
            wait_until(lambda: get(server, "/v2/health/ready")[0] == 503)
            server.process.terminate()
            assert server.process.wait(5.0) == 0
            assert future.result()[0] == 503


def test_an_idle_server_ends_in_a_moment(serve, tiny):
    with serve(tiny) as server:
        server.process.terminate()
        assert server.process.wait(END_SECONDS) == 0
