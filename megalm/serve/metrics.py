"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from megalm.serve.pool import Pool

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The server's numbers since its start, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "megalm_requests_total", "Requests.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "megalm_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "megalm_first_piece_seconds",
            "Time to the first piece of text.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "megalm_tokens_total", "Tokens read and written.", ["model", "kind"], registry=self.registry
        )
        self.refused = Counter(
            "megalm_refused_total",
            "Requests refused for want of room or by a limit.",
            ["why"],
            registry=self.registry,
        )
        self.swaps = Counter(
            "megalm_swaps_total",
            "Times that another version of a release file was to take over.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._version = Gauge(
            "megalm_release_version", "Version in service.", ["model"], registry=self.registry
        )
        self.moderated = Counter(
            "megalm_moderated_total",
            "Texts in which the policy found something.",
            ["category", "side", "action"],
            registry=self.registry,
        )
        self._open = Gauge("megalm_open_texts", "Texts being written.", ["model"], registry=self.registry)
        self._waiting = Gauge(
            "megalm_waiting_texts", "Texts without room.", ["model"], registry=self.registry
        )
        self._copies = Gauge(
            "megalm_ready_copies", "Copies that can be asked.", ["model"], registry=self.registry
        )

    def text(self, pool: Pool) -> bytes:
        """In Prometheus's text format."""
        for name, model in pool.models.items():
            self._open.labels(name).set(pool.open_texts_of(name))
            if model.version is not None:
                self._version.labels(name).set(model.version.number)
            self._waiting.labels(name).set(model.waiting_texts)
            self._copies.labels(name).set(len(model.ready))
        return generate_latest(self.registry)
