"""How large items may get in the memory that their workers have, from what items of a profile held. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from services.scheduler.engine.memory_bounds import UNBOUNDED
from synerdiff.profiles import ItemCaps, Profile
from synerdiff.registry import WorkerRecord

# Of a worker's memory: what fragmentation, libraries and the CUDA context take is in no count of tensors.
USABLE = 0.9


def within_memory(profile: Profile, unet: WorkerRecord, vae: WorkerRecord) -> Profile:
    """The profile with caps that keep either worker within its `memory_limit_bytes`; itself where they do already.

    A worker without a limit, as on CPUs (on GPUs each has a share), or whose device does not count what is held, is not
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
