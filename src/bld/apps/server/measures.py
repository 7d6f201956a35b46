"""What /metrics says, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Measures:
    """Counters of one server; `waiting` and `running` are asked for when they are read.

    Steps per second are rate(bld_steps_total), memory is process_resident_memory_bytes.
    """

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "bld_requests", "Requests, by route and status", ("route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "bld_request_seconds", "From a request to its answer", ("route",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.queued = Histogram(
            "bld_queue_seconds", "From acceptance to start", buckets=SECONDS, registry=self.registry
        )
        self.stages = Histogram(
            "bld_stage_seconds", "Stages of an edit", ("stage",), buckets=SECONDS, registry=self.registry
        )
        self.steps = Counter(
            "bld_steps", "Denoising steps, a batch of candidates at a time", registry=self.registry
        )
        Gauge("bld_queue_waiting", "Edits that wait", registry=self.registry).set_function(waiting)
        Gauge("bld_edits_running", "Edits that run", registry=self.registry).set_function(running)
        Gauge("bld_gpu_memory_bytes", "Memory taken on GPUs by tensors", registry=self.registry).set_function(
            _gpu_memory
        )

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


def _gpu_memory() -> float:
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return float(sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count())))
