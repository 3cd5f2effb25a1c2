"""Metrics of a gateway."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("synerdiff_gateway_requests_total", "HTTP requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "synerdiff_gateway_request_seconds",
    "First byte of an HTTP request to the last of its answer",
    ["route"],
    buckets=(0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
OPEN_REQUESTS = Gauge("synerdiff_gateway_open_requests", "HTTP requests being answered")
HANG_UPS = Counter("synerdiff_gateway_hang_ups_total", "Jobs cancelled because their client had gone")
