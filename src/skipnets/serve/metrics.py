"""A server's metrics for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in its own registry: a process may hold several servers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "skipnets_requests", "Requests, by path and status.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "skipnets_request_seconds",
            "Time from a request's headers to the end of the response.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "skipnets_images",
            "Images: answered, unreadable, or failed in the network.",
            ["outcome"],
            registry=registry,
        )
        self.queue = Gauge(
            "skipnets_queue_images", "Images being read, waiting or computed.", registry=registry
        )
        self.batch_images = Histogram(
            "skipnets_batch_images",
            "Images that went through the network together.",
            buckets=_IMAGES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "skipnets_batch_seconds",
            "Time the network takes for a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.image_memory = Gauge(
            "skipnets_image_memory_bytes", "Memory reserved for images being decoded.", registry=registry
        )
        self.connections = Gauge("skipnets_connections", "Open connections.", registry=registry)
        self.connections_refused = Counter(
            "skipnets_connections_refused",
            "Connections that were refused or closed for their number or their slowness.",
            ["reason"],
            registry=registry,
        )
        self.ready = Gauge("skipnets_ready", "1 if the server accepts images.", registry=registry)
        self.model = Info("skipnets_model", "The model that is served.", registry=registry)

    def text(self) -> bytes:
        """All metrics, as `prometheus_client.CONTENT_TYPE_LATEST`."""
        return generate_latest(self._registry)
