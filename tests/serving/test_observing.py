"""What stands around the routes, where something goes wrong that no client can bring about."""

import asyncio
import json
import logging

import pytest

from tsexport.serving.gate import Gate
from tsexport.serving.limits import MIB, Limits
from tsexport.serving.logs import LOGGER
from tsexport.serving.metrics import Metrics
from tsexport.serving.observing import Observed

SCOPE = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-length", b"100000")]}


def answer_of(routes, gate, metrics, *, cancel=False):
    """Return (status, document) of a POST to routes given as an ASGI application."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    async def ask():
        task = asyncio.ensure_future(Observed(routes, Limits(), gate, metrics)(dict(SCOPE), receive, send))
        await asyncio.sleep(0)
        if cancel:
            task.cancel()
        await task

    asyncio.run(ask())
    start, body = sent
    return start["status"], json.loads(body["body"])


@pytest.fixture
def lines(caplog):
    logger = logging.getLogger(LOGGER)
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, LOGGER):
        yield lambda: caplog.records
    logger.propagate = before


def test_a_bug_is_a_500_with_its_traceback_in_the_log_alone(lines):
    async def routes(scope, receive, send):
        raise ZeroDivisionError("seven by nought")

    gate, metrics = Gate(MIB), Metrics()
    assert answer_of(routes, gate, metrics) == (500, {"error": "a bug in tsexport; its log has the traceback"})
    assert gate.in_flight == 0
    bug, request = lines()
    assert (bug.getMessage(), bug.exc_info[0]) == ("bug", ZeroDivisionError)
    assert (request.fields.status, request.fields.error) == (500, "ZeroDivisionError: seven by nought")
    assert b'tsexport_requests_total{model="",route="other",status="500"} 1.0' in metrics.text()


def test_a_request_that_the_end_cuts_is_told_so(lines):
    async def routes(scope, receive, send):
        await asyncio.sleep(60)

    gate = Gate(MIB)
    assert answer_of(routes, gate, Metrics(), cancel=True) == (503, {"error": "the server is shutting down"})
    assert gate.in_flight == 0
    assert lines()[-1].fields.status == 503


def test_what_would_hold_too_much_is_refused_before_it_is_read(lines):
    async def routes(scope, receive, send):
        raise AssertionError("it was let in")

    gate = Gate(MIB)
    gate.enter(MIB)
    status, document = answer_of(routes, gate, Metrics())
    assert (status, document) == (429, {"error": "1 requests in flight hold 1 MiB; try again later"})
    assert gate.in_flight == 1
    assert lines()[-1].fields.error == "1 requests in flight hold 1 MiB; try again later"
