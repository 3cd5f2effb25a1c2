"""Prometheus metrics of a VAE worker."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

DECODE_SECONDS = Histogram("synerdiff_vae_decode_seconds", "Time of one batched decode", buckets=_SECONDS)
BATCH_IMAGES = Histogram("synerdiff_vae_batch_images", "Images per decode", buckets=(1, 2, 4, 8, 16, 32, 64))
READ_SECONDS = Histogram("synerdiff_vae_latents_read_seconds", "Time to read one item's latents", buckets=_SECONDS)
ENCODE_SECONDS = Histogram(
    "synerdiff_vae_encode_seconds", "Time to encode one image file", ["format"], buckets=_SECONDS
)
IMAGES = Counter("synerdiff_vae_images", "Image files made", ["format"])
FLAGGED = Counter("synerdiff_vae_flagged_images", "Images that the model's safety checker objected to")
WAIT_SECONDS = Histogram(
    "synerdiff_vae_wait_seconds", "Time an item waited for the UNet worker first", buckets=(0.0001, *_SECONDS)
)
SKIPPED_ENTRIES = Counter("synerdiff_vae_skipped_entries", "Plan entries that no longer fitted", ["reason"])
TASKS_FAILED = Counter("synerdiff_vae_tasks_failed", "Tasks given up, by gRPC status code", ["code"])
HALVED_BATCHES = Counter("synerdiff_vae_halved_batches", "Decodes that failed as a batch and were tried in halves")
PLANS_IN_HAND = Gauge("synerdiff_vae_plans_in_hand", "Plans taken and not yet reported")
OUTBOX_IMAGES = Gauge("synerdiff_vae_outbox_images", "Image files kept until the leader has stored them")
OUTBOX_BYTES = Gauge("synerdiff_vae_outbox_bytes", "Bytes of those files")
OUTBOX_DROPPED = Counter("synerdiff_vae_outbox_dropped_images", "Image files dropped because the outbox was full")
ARENAS = Gauge("synerdiff_vae_arenas", "Latents arenas read, by transport", ["transport"])
