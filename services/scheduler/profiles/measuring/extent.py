"""What a profile of a device is to cover. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from synerdiff.profiles import Setting


@dataclass(frozen=True)
class Extent:
    """Items of up to `max_rows` and `max_decodes`, alone and beside each other.

    `unet`, `vae`, `beside`: settings of each, the default first, then those to be tried against it. `bands`: counts
    over 1 that a decode may be cut into.
    """

    max_rows: int
    max_decodes: int
    unet: tuple[Setting, ...] = (Setting(),)
    vae: tuple[Setting, ...] = (Setting(),)
    beside: tuple[Setting, ...] = (Setting(),)
    bands: tuple[int, ...] = ()


def extent_for(
    max_rows: int, max_decodes: int, chunks: Sequence[int], unet_threads: int, vae_threads: int, cores: int
) -> Extent:
    """What is worth measuring on a device.

    On CPUs (`cores` > 0) each side alone has all its threads or one, and beside each other they split the cores: all of
    them to both is never better (teams of threads then wait for cores that the other's hold). On GPUs, with `cores` 0,
    the shares are fixed per process.
    """
    bands = tuple(sorted({count for count in chunks if count > 1}))
    if not cores:
        return Extent(max_rows, max_decodes, bands=bands)
    counts = [max(1, round(cores * share)) for share in (1 / 4, 1 / 8, 1 / 2)]
    beside = [Setting(1, min(max(1, cores - n), unet_threads), min(n, vae_threads)) for n in counts]
    unet, vae = (tuple(dict.fromkeys((threads, 1))) for threads in (unet_threads, vae_threads))
    return Extent(
        max_rows,
        max_decodes,
        tuple(Setting(1, n, 0) for n in unet),
        tuple(Setting(1, 0, n) for n in vae),
        tuple(dict.fromkeys(beside)),
        bands,
    )
