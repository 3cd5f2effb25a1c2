"""Structured logs and the metrics port, the same for every service."""

import logging
import platform
import sys
from importlib import metadata

import structlog
from prometheus_client import Gauge, start_http_server
from structlog.typing import EventDict, FilteringBoundLogger

_build = Gauge(
    "synerdiff_build_info",
    "1: the versions that this process runs; no torch: empty",
    ["service", "version", "python", "torch"],
)


def configure_logging(service: str, level: str = "info") -> None:
    """One JSON object per line on stderr, each with the service's name, a timestamp and the call's bound fields."""

    def name_service(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_service,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines name this part of the service."""
    logger: FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


def serve_metrics(service: str, port: int) -> None:
    """Serve Prometheus metrics on `port` from a thread of its own; 0 serves none."""
    if port:
        _build.labels(service, _version_of("synerdiff"), platform.python_version(), _version_of("torch")).set(1)
        start_http_server(port)


def _version_of(package: str) -> str:
    """The installed version, without importing the package; "" for none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
