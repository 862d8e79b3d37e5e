"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One server's; a registry of its own, so that several fit in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"chiasm_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"chiasm_{name}", text, ["model"], registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(
                f"chiasm_{name}_seconds", text, ["model"], registry=registry, buckets=SECONDS
            )

        self.requests = counter("requests", "HTTP requests answered", "route", "status")
        self.ended = counter("replies", "Replies by how they ended", "model", "how")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts", "model")
        self.cached_tokens = counter("cached_tokens", "Of those, computed before", "model")
        self.text_tokens = counter("text_tokens", "Text tokens written", "model")
        self.image_tokens = counter("image_tokens", "Image tokens drawn", "model")
        self.steps = counter("steps", "Forward passes for one token of every reply", "model")
        self.active = gauge("active_rows", "Rows of the batch in use")
        self.waiting = gauge("waiting", "Requests that wait for a row")
        self.first_token = seconds("first_token", "From a request's arrival to its first token")
        self.between_tokens = seconds("between_tokens", "Between two tokens of a reply")

    def text(self) -> bytes:
        return generate_latest(self.registry)
