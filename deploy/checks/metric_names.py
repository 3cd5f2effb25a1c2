"""Every metric that a service of SynerDiff may show, as its code declares it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.utils import floatToGoString

from services.scheduler.telemetry.metrics import PoolMetrics

# Where metrics are declared, by the service that shows them. A test finds declarations in other places.
MODULES = {
    "Scheduler": (
        "services.scheduler.telemetry.metrics",
        "services.scheduler.api.call_durations",
        "services.scheduler.api.callers_file",
        "services.scheduler.api.gate",
        "services.scheduler.api.generate",
        "services.scheduler.store.images",
        "services.scheduler.store.queue",
    ),
    "Gateway": ("services.gateway.metrics",),
    "UNet worker": ("services.unet_worker.metrics",),
    "VAE worker": ("services.vae_worker.metrics",),
    "Both workers": ("synerdiff.pace",),
    "Every process": ("synerdiff.telemetry",),
}

_KINDS: tuple[type[MetricWrapperBase], ...] = (Counter, Gauge, Histogram)
_SUFFIXES = {"counter": ("_total", "_created"), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum", "_created")}


@dataclass(frozen=True)
class Family:
    """A metric as dashboards name it, counters with their `_total`. `buckets`: bounds as Prometheus writes them."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that its samples have."""
        stem = self.name.removesuffix("_total") if self.kind == "counter" else self.name
        return tuple(stem + suffix for suffix in _SUFFIXES[self.kind])

    def labels_of(self, series: str) -> frozenset[str]:
        """The labels that samples of that name have."""
        return frozenset(self.labels) | ({"le"} if series.endswith("_bucket") else frozenset())


@cache
def families() -> tuple[Family, ...]:
    """All of them, by service and name."""
    found: list[Family] = []
    for service, names in MODULES.items():
        metrics = (metric for name in names for metric in _declared(import_module(name)))
        found += sorted((_family(service, metric) for metric in metrics), key=lambda family: family.name)
    return tuple(found)


@cache
def by_series() -> dict[str, Family]:
    """The family of every name that a sample may have."""
    return {series: family for family in families() for series in family.series}


def _declared(module: ModuleType) -> Iterator[MetricWrapperBase]:
    values: list[Any] = [value for name, value in vars(module).items() if name not in ("Counter", "Gauge", "Histogram")]
    if vars(module).get("PoolMetrics") is PoolMetrics and module.__name__ == PoolMetrics.__module__:
        values += vars(PoolMetrics.of_process()).values()
    yield from (value for value in values if isinstance(value, _KINDS))


def _family(service: str, metric: Any) -> Family:
    (described,) = metric.describe()
    name = f"{described.name}_total" if described.type == "counter" else described.name
    bounds = metric._kwargs["buckets"] if described.type == "histogram" else ()
    written: Callable[[float], str] = floatToGoString
    buckets = tuple(map(written, (*bounds, float("inf")))) if bounds else ()
    return Family(service, name, described.type, metric._labelnames, described.documentation, buckets)
