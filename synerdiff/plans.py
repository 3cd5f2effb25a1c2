"""Plans and reports: what the scheduler tells the workers of a domain each tick, and what they answer.

Frozen values without behaviour. The words are the design's: a tick is one planned round of one domain, an item one
concurrency of a tick (a UNet sub-batch beside a VAE sub-batch), a slot a place in a latents arena.
"""

from dataclasses import dataclass
from enum import IntEnum

from synerdiff.requests import ImageFormat


@dataclass(frozen=True)
class SlotRef:
    """A slot in one life of itself: the epoch rises each time the slot changes hands."""

    arena_id: str
    index: int
    epoch: int


@dataclass(frozen=True)
class UnetEntry:
    """Advance a task by its UNet call number `call`, if that is where it stands."""

    task_id: str
    call: int


@dataclass(frozen=True)
class UnetItem:
    """One batched UNet call: entries of one batch key."""

    entries: tuple[UnetEntry, ...]


@dataclass(frozen=True)
class UnetPlan:
    """A UNet worker's part of a tick."""

    leader_token: int
    tick: int
    items: tuple[UnetItem, ...]


@dataclass(frozen=True)
class DecodeEntry:
    """Decode the latents in a slot into an image file. Sizes in pixels."""

    task_id: str
    arena_address: str
    slot: SlotRef
    width: int
    height: int
    image_format: ImageFormat
    parameters_json: str


@dataclass(frozen=True)
class VaeItem:
    """One batched decode: entries of one latent shape."""

    entries: tuple[DecodeEntry, ...]


@dataclass(frozen=True)
class VaePlan:
    """A VAE worker's part of a tick."""

    leader_token: int
    tick: int
    items: tuple[VaeItem, ...]


class SkipReason(IntEnum):
    """Why a conditional entry was not carried out, by the proto's numbers."""

    UNKNOWN_TASK = 1
    OTHER_CALL = 2
    NOT_READY = 3
    STALE_SLOT = 4
    ARENA_UNREACHABLE = 5


@dataclass(frozen=True)
class SkippedEntry:
    """An entry that no longer fitted: never an error. `next_call`, with OTHER_CALL: where the task stands."""

    task_id: str
    reason: SkipReason
    next_call: int = 0


@dataclass(frozen=True)
class ItemTiming:
    """One item as it ran; wall clock, so that both workers of a domain line up. Rows: UNet rows or images."""

    start_unix_ns: int
    end_unix_ns: int
    rows: int


@dataclass(frozen=True)
class UnetTickDone:
    """What became of a UNet plan. `finished`: tasks whose last call is done, with the slot their latents are in."""

    tick: int
    items: tuple[ItemTiming, ...]
    skipped: tuple[SkippedEntry, ...]
    finished: tuple[tuple[str, SlotRef], ...]


@dataclass(frozen=True)
class VaeTickDone:
    """What became of a VAE plan. The image files of `decoded` come on a stream of their own."""

    tick: int
    items: tuple[ItemTiming, ...]
    skipped: tuple[SkippedEntry, ...]
    decoded: tuple[str, ...]


@dataclass(frozen=True)
class TaskReady:
    """A task's prompt is encoded, its noise drawn and its sampler table built."""

    task_id: str
    num_calls: int
    encode_ms: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskFailed:
    """A task that can never succeed on this worker; `code` is a google.rpc.Code."""

    task_id: str
    code: int
    message: str


@dataclass(frozen=True)
class Preview:
    """A small PNG of a task after `call` UNet calls."""

    task_id: str
    call: int
    png: bytes


@dataclass(frozen=True)
class ResidentTask:
    """What a worker still holds when a leader attaches. `slot` is set once the task is finished."""

    task_id: str
    next_call: int
    num_calls: int
    slot: SlotRef | None


@dataclass(frozen=True)
class DecodedImage:
    """An image file with its verdict and times."""

    task_id: str
    format: ImageFormat
    width: int
    height: int
    data: bytes
    flagged: bool
    decode_ms: float
    encode_ms: float
