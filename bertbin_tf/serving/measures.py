"""What a server counts, for Prometheus and for the log."""

from collections.abc import Callable

import prometheus_client

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32)


class Measures:
    """Requests by outcome, their seconds, the texts answered and the sizes of the batches that they were answered in.

    Args:
        report: Function that is told in one line what went wrong inside. Defaults to nothing.
    """

    def __init__(self, report: Callable[[str], None] = lambda line: None):
        self.report = report
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "bertbin_tf_requests", "Requests by method and HTTP status.", ("method", "status"), registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "bertbin_tf_request_seconds",
            "Seconds from the request to its answer.",
            ("method",),
            registry=self._registry,
            buckets=SECONDS,
        )
        self.rows = prometheus_client.Counter("bertbin_tf_rows", "Texts answered.", registry=self._registry)
        self.batch_rows = prometheus_client.Histogram(
            "bertbin_tf_batch_rows", "Texts computed together.", registry=self._registry, buckets=ROWS
        )
        self.waiting = prometheus_client.Gauge("bertbin_tf_waiting_rows", "Texts that wait.", registry=self._registry)
        self.version = prometheus_client.Gauge(
            "bertbin_tf_version", "The version that answers by default; 0 for none.", registry=self._registry
        )

    def count(self, method: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self._requests.labels(method, str(status)).inc()
        self._seconds.labels(method).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Returns all of it in Prometheus' text format, and the media type of that."""
        return prometheus_client.generate_latest(self._registry), prometheus_client.CONTENT_TYPE_LATEST
