"""What Prometheus reads at `/metrics`.

Labels have few values: models, routes and statuses, never what a client sent.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tsexport.serving.batcher import Answer, Batcher

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tsexport_requests", "Requests answered.", ("route", "model", "status"), registry=registry
        )
        self._seconds = Histogram(
            "tsexport_request_seconds", "From a request's head to its answer.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._queue_seconds = Histogram(
            "tsexport_queue_seconds", "Waiting for the model.", ("model",), buckets=_SECONDS, registry=registry
        )
        self._compute_seconds = Histogram(
            "tsexport_compute_seconds", "One inference, of all requests computed together.", ("model",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._rows = Histogram(
            "tsexport_rows_together", "Rows of the inference that a request was part of.", ("model",),
            buckets=_ROWS, registry=registry,
        )  # fmt: skip
        self._queued = Gauge("tsexport_queued", "Requests that wait for the model.", ("model",), registry=registry)
        self._in_flight = Gauge("tsexport_in_flight", "Requests being read, waiting or computed.", registry=registry)
        self._lost_logs = Gauge(
            "tsexport_log_lines_lost", "Log lines dropped because stderr was not read.", registry=registry
        )

    def observer_of(self, model: str) -> Callable[[Answer], None]:
        """Return what is told of every answer of a model."""
        queue, compute, rows = (one.labels(model) for one in (self._queue_seconds, self._compute_seconds, self._rows))

        def observe(answer: Answer) -> None:
            queue.observe(answer.queue_s)
            compute.observe(answer.compute_s)
            rows.observe(answer.rows_together)

        return observe

    def watch_queue(self, model: str, batcher: Batcher) -> None:
        """Show how many requests wait for a model."""
        self._queued.labels(model).set_function(lambda: batcher.queued)

    def watch_in_flight(self, number: Callable[[], float]) -> None:
        """Show how many requests are in flight."""
        self._in_flight.set_function(number)

    def watch_lost_logs(self, number: Callable[[], float]) -> None:
        """Show how many log lines were dropped."""
        self._lost_logs.set_function(number)

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self._registry)
