"""Prometheus metrics of a UNet worker. None is touched between two UNet calls: steps are counted from their reports."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)

STEP_SECONDS = Histogram(
    "synerdiff_unet_step_seconds", "Time of one batched UNet call with its samplers", buckets=_SECONDS
)
BATCH_ROWS = Histogram(
    "synerdiff_unet_batch_rows",
    "UNet rows per call, two per guided task",
    buckets=(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64),
)
UNET_CALLS = Counter("synerdiff_unet_calls", "Batched UNet calls")
WAIT_SECONDS = Histogram(
    "synerdiff_unet_wait_seconds", "Time an item waited for the VAE worker first", buckets=(0.0001, *_SECONDS)
)
SKIPPED_ENTRIES = Counter("synerdiff_unet_skipped_entries", "Plan entries that no longer fitted", ["reason"])
SLOTS_TOTAL = Gauge("synerdiff_unet_slots", "Slots of the latents arena")
SLOTS_USED = Gauge("synerdiff_unet_slots_used", "Slots of the latents arena held by a task")
RESIDENT_TASKS = Gauge("synerdiff_unet_resident_tasks", "Tasks held, by state", ["state"])
HALVED_ITEMS = Counter("synerdiff_unet_halved_items", "UNet calls made in halves for want of memory")
TASKS_FAILED = Counter("synerdiff_unet_tasks_failed", "Tasks given up, by gRPC status code", ["code"])
ENCODE_SECONDS = Histogram("synerdiff_unet_encode_seconds", "Time of encoding one batch of prompts", buckets=_SECONDS)
CACHE_BYTES = Gauge("synerdiff_unet_embedding_cache_bytes", "Bytes of encoded prompts kept")
CACHE_HITS = Counter("synerdiff_unet_embedding_cache_hits", "Prompts found encoded")
CACHE_MISSES = Counter("synerdiff_unet_embedding_cache_misses", "Prompts that had to be encoded")
PREVIEWS_DROPPED = Counter("synerdiff_unet_previews_dropped", "Previews left out because their encoder was behind")
