"""Findings of a measured profile: its subject, and the size of items that pays on the device. Pure."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from services.scheduler.engine.item_sizes import UNBOUNDED
from synerdiff.profiles import ItemCaps, Profile, ProfileSubject
from synerdiff.registry import WorkerRecord

LEVEL_WITHIN = 0.01  # throughput within this of the best is as good: rows past that are of no use
_MORE_DECODES = 0.05  # per ms, that one more in an item has to bring
LONGEST_ITEM = 2.0  # an item with decodes takes at most this many times one without: steps must not wait for more
# Of a worker's memory: counts of tensors leave out fragmentation, libraries and the CUDA context.
USABLE = 0.9


def subject_of(unet: WorkerRecord, vae: WorkerRecord, width: int, height: int) -> ProfileSubject:
    """The subject of a profile of these two workers at a picture size (pixels)."""
    scale = max(1, vae.model_card.size_multiple)
    return ProfileSubject(
        model=unet.model_card.name,
        model_digest=_both(unet.model_digest, vae.model_digest),
        device=_both(unet.device, vae.device),
        dtype=_both(unet.dtype, vae.dtype),
        latent_shape=(unet.model_card.latent_channels, height // scale, width // scale),
        shares=_shares(unet, vae),
        execution=_both(unet.execution, vae.execution),
    )


def memory_format_of(unet: WorkerRecord, vae: WorkerRecord) -> str:
    """How the convolution weights of both lie."""
    return _both(unet.memory_format, vae.memory_format)


def _shares(unet: WorkerRecord, vae: WorkerRecord) -> str:
    """How the two share a device: CPU threads, percent of a GPU's threads under CUDA MPS, or neither set."""
    if unet.threads or vae.threads:
        return f"{unet.threads} + {vae.threads} threads"
    if unet.mps_thread_percent or vae.mps_thread_percent:
        return f"MPS {unet.mps_thread_percent or 'none'}:{vae.mps_thread_percent or 'none'}"
    return "as the device shares"


def _both(of_unet: str, of_vae: str) -> str:
    return of_unet if of_unet == of_vae else f"{of_unet} + {of_vae}"


def with_caps(profile: Profile, slots: int) -> Profile:
    """The profile with caps at the largest useful items; before, its caps are the extent of measuring. `slots`: of the
    UNet worker, the most tasks that can run."""
    tasks = min(max(1, math.ceil(profile.knee_rows(LEVEL_WITHIN) / 2)), slots)
    capped = replace(profile, caps=replace(profile.caps, unet=tasks))
    return replace(capped, caps=replace(capped.caps, vae=decodes_at_once(capped, capped.knee_rows())))


def decodes_at_once(profile: Profile, rows: int) -> int:
    """Decodes per item past which no more are made per ms, or an item of `rows` gets longer than about two without."""
    best, most = 0.0, 1
    for decodes in range(1, profile.caps.vae + 1):
        beside = profile.choice(rows, decodes)
        ms = beside.ms if beside else profile.latency_ms(0, decodes)
        if decodes > 1 and ms > LONGEST_ITEM * profile.latency_ms(rows, 0):
            break
        if decodes / ms > best * (1 + _MORE_DECODES):
            best, most = decodes / ms, decodes
    return most


def within_memory(profile: Profile, unet: WorkerRecord, vae: WorkerRecord) -> Profile:
    """The profile with caps that keep either worker within its `memory_limit_bytes`; itself where they do already.

    A worker without a limit, as on CPUs (on GPUs each has a share), or whose device does not count bytes held, is not
    bounded here: its items are measured and run, and where memory does not suffice they are halved and made smaller
    (see `MemoryBounds`).
    """
    rows = most_within(((c.rows, c.unet_bytes) for c in profile.cells), unet.memory_limit_bytes)
    decodes = most_within(((c.decodes, c.vae_bytes) for c in profile.cells), vae.memory_limit_bytes)
    fits = ItemCaps(max(1, rows // 2) if rows else UNBOUNDED.unet, decodes or UNBOUNDED.vae)
    caps = profile.caps.within(fits)
    return profile if caps == profile.caps else replace(profile, caps=caps)


def most_within(held: Iterable[tuple[int, int]], limit_bytes: int) -> int:
    """The most at once, at least 1, that stay within the usable part of a limit; 0 where nothing is known of it.

    `held`: how many at once, and the bytes held then; of equal counts the most counts. Between and beyond them bytes
    are taken to grow linearly, and never to fall.
    """
    most: dict[int, int] = {}
    for count, size in held:
        if count and size:
            most[count] = max(size, most.get(count, 0))
    if not most or not limit_bytes:
        return 0
    points, usable = sorted(most.items()), limit_bytes * USABLE
    if len(points) == 1:
        points.insert(0, (0, 0))
    reached = 0
    for (low, low_bytes), (high, high_bytes) in pairwise(points):
        slope = max(high_bytes - low_bytes, 0) / (high - low)
        if slope and high_bytes > usable:
            return max(1, reached, int(low + (usable - low_bytes) / slope))
        reached = high
    return max(1, int(reached + (usable - points[-1][1]) / slope)) if slope else UNBOUNDED.unet
