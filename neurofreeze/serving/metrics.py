"""Prometheus metrics of the server; none of them holds anything of a request."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from neurofreeze.guard.events import Event

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """neurofreeze_requests_total{route,status}, neurofreeze_request_seconds{route}, neurofreeze_tokens_total{kind},
    neurofreeze_queue_length, neurofreeze_streams, neurofreeze_batch_size and
    neurofreeze_guard_events_total{guard,reaction,outcome}; the monitor's own are in the same registry.

    Args:
        waiting: how many requests wait.
        streams: how many answers are being streamed.

    Attributes:
        registry: what `/metrics` shows.
    """

    def __init__(self, waiting: Callable[[], int], streams: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        name = "neurofreeze"
        self._requests = Counter(f"{name}_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            f"{name}_request_seconds", "To the end of the response.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter(f"{name}_tokens", "Tokens read and written.", ["kind"], registry=registry)
        self._events = Counter(
            f"{name}_guard_events", "Decisions of the guard.", ["guard", "reaction", "outcome"], registry=registry
        )
        self._sizes = Histogram(f"{name}_batch_size", "Requests a batch.", buckets=_SIZES, registry=registry)
        Gauge(f"{name}_queue_length", "Requests that wait.", registry=registry).set_function(waiting)
        Gauge(f"{name}_streams", "Answers being streamed.", registry=registry).set_function(streams)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A response has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """A batch has begun."""
        self._sizes.observe(size)

    def tokens(self, prompt: int, completion: int) -> None:
        """An answer is whole."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def event(self, event: Event) -> None:
        """The guard has decided."""
        self._events.labels(event.guard, event.reaction, event.outcome).inc()

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)
