"""How an arena introduces itself to readers in other processes."""

from dataclasses import dataclass

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that latents may have in an arena, and the bytes of one element."""


@dataclass(frozen=True)
class TransportOffer:
    """A way to an arena's bytes. A reader proves it by finding `pattern` at the offer's far end.

    `cuda_handle` is a CUipcMemHandle (64 bytes) of memory on the GPU `gpu_uuid`; `uid` is the exporter's user, `epoch`
    differs between all exports within a boot.
    """

    transport: str
    pattern: bytes
    boot_id: str
    pid: int
    shm_path: str = ""
    cuda_handle: bytes = b""
    gpu_uuid: str = ""
    uid: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class ArenaDescription:
    """One arena of one life of one worker. `offers` come best first; reading inline always works and is not listed."""

    arena_id: str
    slots: int
    slot_bytes: int
    dtype: str
    offers: tuple[TransportOffer, ...]


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


class TransportUnusable(Exception):
    """An offered transport does not lead to the arena; the message says why."""
