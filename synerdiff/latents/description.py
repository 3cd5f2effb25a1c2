"""How an arena introduces itself to readers in other processes."""

from dataclasses import dataclass

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that latents may have in an arena, and the bytes of one element."""


@dataclass(frozen=True)
class TransportOffer:
    """A way to an arena's bytes. A reader proves it by finding `pattern` at the offer's far end."""

    transport: str
    pattern: bytes
    boot_id: str
    pid: int
    shm_path: str = ""


@dataclass(frozen=True)
class ArenaDescription:
    """One arena of one life of one worker. `offers` come best first; reading inline always works and is not listed."""

    arena_id: str
    slots: int
    slot_bytes: int
    dtype: str
    offers: tuple[TransportOffer, ...]


class TransportUnusable(Exception):
    """An offered transport does not lead to the arena; the message says why."""
