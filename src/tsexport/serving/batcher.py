"""One thread that runs a model's session, and the bounded queue before it.

Requests that wait together are computed together, up to `max_batch` rows, where an answer does not depend on the other
rows: artifacts with dynamically quantized activations, and models with a tensor that has no leading batch, are
computed one request at a time.  By default nothing waits for company: while the session runs, others gather.
A full queue refuses at once; a request whose client no longer waits is skipped.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np

from tsexport.serving.gate import closing
from tsexport.serving.refusals import Refusal
from tsexport.types import Array, Session, TensorSpec


@dataclass(frozen=True)
class Answer:
    """A request's outputs, and what it went through: waiting, computing, and the rows that were computed together."""

    outputs: dict[str, Array]
    queue_s: float
    compute_s: float
    rows_together: int


@dataclass(frozen=True)
class _Job:
    feeds: dict[str, Array]
    rows: int
    future: "Future[Answer]"
    came_s: float


def can_batch(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batch_dependent: bool) -> bool:
    """Return whether requests may be computed together: the batch leads every tensor, and rows do not mix."""
    led = all(
        bool(spec.shape) and isinstance(spec.shape[0], str) and not any(isinstance(dim, str) for dim in spec.shape[1:])
        for spec in (*inputs, *outputs)
    )
    return led and not batch_dependent


class Batcher:
    """The queue and the thread of one model.

    Args:
        together: whether requests may be computed together, as `can_batch` says.
        max_batch: rows that are computed together at most.
        max_queue: requests that may wait.
        delay_s: how long the first of a batch waits for others.
        observe: told of every answer, on the model's thread.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        together: bool,
        max_batch: int,
        max_queue: int,
        delay_s: float = 0.0,
        observe: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        self._session, self._name, self._observe = session, name, observe
        self._together, self._max_batch, self._max_queue, self._delay_s = together, max_batch, max_queue, delay_s
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"model-{name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    def submit(self, feeds: dict[str, Array], rows: int) -> "Future[Answer]":
        """Put a request into the queue; its future holds the answer, or what the session raised.

        Raises:
            Refusal: 429, the queue is full; 503, the batcher is closed.
        """
        job = _Job(feeds, rows, Future(), time.perf_counter())
        with self._changed:
            if self._closed:
                raise closing()
            self._require_room()
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def check_room(self) -> None:
        """Find out early, before a body is read and parsed for nothing; `submit` may still refuse.

        Raises:
            Refusal: 429, the queue is full.
        """
        with self._changed:
            self._require_room()

    def close(self, grace_s: float) -> bool:
        """Refuse what waits and end the thread; return whether it ended in time (one inference cannot be cut short)."""
        with self._changed:
            self._closed = True
            waiting, self._jobs = self._jobs, deque()
            self._changed.notify()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(closing())
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while jobs := self._take():
            live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if live:
                self._run(live)

    def _take(self) -> list[_Job]:
        """Return the next jobs to compute together, waiting for the first; none once the batcher is closed."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._together and self._delay_s and not self._closed:
                    self._changed.wait_for(self._is_enough, max(0.0, self._jobs[0].came_s + self._delay_s - _now_s()))
                if self._jobs and not self._closed:  # all that waited may have been given up, and forgotten
                    return self._next_jobs()
            return []

    def _next_jobs(self) -> list[_Job]:
        """Take the first job from the queue, and those behind it that are computed with it."""
        taken = [self._jobs.popleft()]
        rows = taken[0].rows
        while self._together and self._jobs and rows + self._jobs[0].rows <= self._max_batch:
            taken.append(self._jobs.popleft())
            rows += taken[-1].rows
        return taken

    def _require_room(self) -> None:
        if len(self._jobs) >= self._max_queue:
            self._jobs = deque(one for one in self._jobs if not one.future.cancelled())
        if len(self._jobs) >= self._max_queue:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{len(self._jobs)} requests wait for {self._name}, and no more may; try again later",
            )

    def _is_enough(self) -> bool:
        return self._closed or sum(job.rows for job in self._jobs) >= self._max_batch

    def _run(self, jobs: list[_Job]) -> None:
        started_s = _now_s()
        try:
            outputs = self._session.run(_joined(jobs))
        except Exception as error:
            if len(jobs) > 1:  # whoever is to blame, the others get their answers
                for job in jobs:
                    self._run([job])
                return
            jobs[0].future.set_exception(error)
            return
        compute_s, rows, start = _now_s() - started_s, sum(job.rows for job in jobs), 0
        for job in jobs:
            part = (
                outputs
                if len(jobs) == 1
                else {name: array[start : start + job.rows] for name, array in outputs.items()}
            )
            start += job.rows
            answer = Answer(part, started_s - job.came_s, compute_s, rows)
            job.future.set_result(answer)
            self._observe(answer)


def _joined(jobs: list[_Job]) -> dict[str, Array]:
    if len(jobs) == 1:
        return jobs[0].feeds
    return {name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds}


def _now_s() -> float:
    return time.perf_counter()
