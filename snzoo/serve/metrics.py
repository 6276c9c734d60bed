"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of an application and its engine."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "snzoo_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.photos = Counter(
            "snzoo_photos", "Photos by model and outcome.", ["model", "outcome"], registry=registry
        )
        self.batch_sizes = Histogram(
            "snzoo_batch_size",
            "Photos in a forward pass.",
            ["model"],
            buckets=SIZES,
            registry=registry,
        )
        self.decoding, self.waiting, self.inference = (
            Histogram(f"snzoo_{stage}_seconds", about, buckets=SECONDS, registry=registry)
            for stage, about in (
                ("decoding", "Seconds to decode and resize a photo."),
                ("waiting", "Seconds that decoded photos wait for a forward pass."),
                ("inference", "Seconds of a forward pass."),
            )
        )
        self._queue = Gauge(
            "snzoo_queue_length", "Photos accepted and not answered yet.", registry=registry
        )

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Report what ``length`` returns as the length of the queue."""
        self._queue.set_function(length)

    def render(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return generate_latest(self.registry)
