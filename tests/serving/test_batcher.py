"""The queue before a model, on real sessions: what is computed together, what is refused, and what a failure leaves."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

import tsexport
from tsexport.errors import UsageError
from tsexport.serving.batcher import Batcher, can_batch
from tsexport.serving.refusals import Refusal
from tsexport.types import TensorSpec

BATCHED = TensorSpec("x", "float32", ("batch", 4))
SECONDS = 120.0


class Held:
    """A session that waits, before each run, until it is let go; the runs are the real session's."""

    def __init__(self, session):
        self._session, self.rows, self.let_go, self.entered = session, [], threading.Event(), threading.Event()
        self.inputs, self.outputs, self.close = session.inputs, session.outputs, session.close

    def run(self, feeds):
        self.entered.set()
        assert self.let_go.wait(SECONDS)
        self.rows.append(len(feeds["x"]))
        return self._session.run(feeds)


@pytest.fixture
def held(tiny):
    with tsexport.load(tiny, precision="fp32") as session:
        yield Held(session)


def feeds(rows, value=0.0):
    return {"x": np.full((rows, 4), value, np.float32)}


def batcher_of(session, **changes):
    given = {"together": True, "max_batch": 8, "max_queue": 16} | changes
    return Batcher(session, "tiny", **given)


def occupy(batcher, held):
    """Give the model something to do; what is submitted next gathers in the queue."""
    future = batcher.submit(feeds(1), 1)
    assert held.entered.wait(SECONDS)
    return future


def test_what_gathers_is_computed_together_up_to_the_limit_and_in_order(held):
    batcher = batcher_of(held)
    occupy(batcher, held)
    futures = [batcher.submit(feeds(rows, value), rows) for value, rows in enumerate((3, 4, 2, 8, 1))]
    assert batcher.queued == 5
    held.let_go.set()
    answers = [future.result(SECONDS) for future in futures]
    assert held.rows == [1, 7, 2, 8, 1]  # 3 + 4; 2 would make 9, and 2 + 8 would make 10
    assert [answer.rows_together for answer in answers] == [7, 7, 2, 8, 1]
    for value, answer in enumerate(answers):
        alone = held._session.run(feeds(1, value))["y"]
        np.testing.assert_allclose(answer.outputs["y"], np.repeat(alone, len(answer.outputs["y"]), 0), rtol=1e-5)
        assert answer.queue_s > 0
        assert answer.compute_s > 0
    assert batcher.close(SECONDS)


def test_one_at_a_time_where_rows_depend_on_each_other(held):
    batcher = batcher_of(held, together=False)
    occupy(batcher, held)
    futures = [batcher.submit(feeds(2), 2) for _ in range(3)]
    held.let_go.set()
    assert [future.result(SECONDS).rows_together for future in futures] == [2, 2, 2]
    assert batcher.close(SECONDS)


def test_a_delay_lets_others_join(held):
    held.let_go.set()
    batcher = batcher_of(held, delay_s=SECONDS, max_batch=3)  # ends when three rows are there, long before the delay
    futures = [batcher.submit(feeds(1), 1) for _ in range(3)]
    assert [future.result(SECONDS / 2).rows_together for future in futures] == [3, 3, 3]
    assert batcher.close(SECONDS)


def test_a_delay_ends(held):
    held.let_go.set()
    batcher = batcher_of(held, delay_s=0.05)
    answer = batcher.submit(feeds(1), 1).result(SECONDS)
    assert answer.rows_together == 1
    assert answer.queue_s >= 0.05
    assert batcher.close(SECONDS)


def test_a_delay_outlasts_those_that_gave_up(held):
    """All that waited are forgotten while the model waits for more: it goes on with what comes next."""
    held.let_go.set()
    delay_s = 1.0  # far longer than a busy machine takes to give up after the first sleep
    batcher = batcher_of(held, delay_s=delay_s, max_queue=1)
    gone = batcher.submit(feeds(1), 1)
    time.sleep(0.1)  # the delay has begun
    assert gone.cancel()
    batcher.check_room()
    assert batcher.queued == 0
    time.sleep(delay_s)  # the delay is over, and nothing is there
    assert batcher.submit(feeds(1), 1).result(SECONDS).rows_together == 1
    assert batcher.close(SECONDS)


def test_closing_ends_a_delay(held):
    batcher = batcher_of(held, delay_s=SECONDS)
    future = batcher.submit(feeds(1), 1)
    assert batcher.close(SECONDS / 2)
    with pytest.raises(Refusal, match="the server is shutting down"):
        future.result(0)


def test_a_full_queue_refuses_and_forgets_those_whose_client_is_gone(held):
    batcher = batcher_of(held, max_queue=2)
    occupy(batcher, held)
    gone, stays = batcher.submit(feeds(1), 1), batcher.submit(feeds(1), 1)
    with pytest.raises(Refusal, match="2 requests wait for tiny, and no more may; try again later") as caught:
        batcher.submit(feeds(1), 1)
    assert caught.value.status == 429
    assert gone.cancel()
    late = batcher.submit(feeds(2), 2)
    held.let_go.set()
    assert stays.result(SECONDS).rows_together == late.result(SECONDS).rows_together == 3
    with pytest.raises(CancelledError):
        gone.result(SECONDS)
    assert held.rows == [1, 3]
    assert batcher.close(SECONDS)


def test_who_cannot_be_answered_does_not_take_the_others_along(held):
    """`submit` is given feeds that were checked; what a runtime refuses nevertheless is that request's own failure."""
    batcher = batcher_of(held)
    occupy(batcher, held)
    good = batcher.submit(feeds(1), 1)
    bad = batcher.submit({"x": np.zeros((1, 4), np.float64)}, 1)
    also = batcher.submit(feeds(2), 2)
    held.let_go.set()
    assert good.result(SECONDS).rows_together == 1
    assert also.result(SECONDS).rows_together == 2
    with pytest.raises(UsageError, match="input 'x' is float64"):
        bad.result(SECONDS)
    assert batcher.submit(feeds(1), 1).result(SECONDS).outputs["y"].shape == (1, 3)
    assert batcher.close(SECONDS)


def test_closing_refuses_what_waits_and_what_comes(held):
    batcher = batcher_of(held)
    running = occupy(batcher, held)
    waits = batcher.submit(feeds(1), 1)
    assert not batcher.close(0.01)  # one inference still runs
    with pytest.raises(Refusal, match="the server is shutting down"):
        waits.result(SECONDS)
    with pytest.raises(Refusal, match="the server is shutting down") as caught:
        batcher.submit(feeds(1), 1)
    assert caught.value.status == 503
    held.let_go.set()
    assert running.result(SECONDS).rows_together == 1
    assert batcher.close(SECONDS)


def test_answers_are_told(held):
    told = []
    held.let_go.set()
    batcher = batcher_of(held, observe=told.append)
    answer = batcher.submit(feeds(3), 3).result(SECONDS)
    assert batcher.close(SECONDS)  # the thread that tells has ended; it tells after it answered
    assert told == [answer]


@pytest.mark.parametrize(
    ("shape", "dependent", "expected"),
    [
        (("batch", 4), False, True),
        (("batch", 4), True, False),
        ((1, 4), False, False),
        ((), False, False),
        ((4, "batch"), False, False),
        (("batch", "batch"), False, False),
    ],
)
def test_what_may_be_computed_together(shape, dependent, expected):
    other = TensorSpec("other", "float32", shape)
    assert can_batch((BATCHED, other), (BATCHED,), dependent) is expected
    assert can_batch((BATCHED,), (other, BATCHED), dependent) is expected
