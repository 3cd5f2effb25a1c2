"""Plans and reports: the scheduler's plans for the workers of a domain each tick, and their reports.

Frozen values without behaviour. A tick is one planned round of one domain, an item one concurrency of a tick
(a UNet sub-batch beside a VAE sub-batch), a slot a place in a latents arena.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from synerdiff.requests import ImageFormat
from synerdiff.telemetry import get_logger

log = get_logger("plans")


@dataclass(frozen=True)
class SlotRef:
    """A slot in the hands of one holder: the epoch rises each time the slot changes hands."""

    arena_id: str
    index: int
    epoch: int


@dataclass(frozen=True)
class UnetEntry:
    """Advance a task by its UNet call number `call`, if that is where it stands; `skip_cfg`: without guidance."""

    task_id: str
    call: int
    skip_cfg: bool = False


@dataclass(frozen=True)
class ItemRef:
    """An item of a domain: its tick and its place in it, both from 1."""

    tick: int
    place: int


@dataclass(frozen=True)
class Execution:
    """How a worker runs its part of an item.

    `place` of the item in its tick, from 1; a worker has no part in some. `threads`: the share of the CPU it takes (0:
    its own number). `after`: the item of the other worker of the domain that must have ended first, waited for at most
    `patience_ms`; None where there is none. `pace`: the name of the pair's shared progress; empty where items run free.
    """

    place: int = 1
    threads: int = 0
    after: ItemRef | None = None
    patience_ms: int = 0
    pace: str = ""


@dataclass(frozen=True)
class UnetItem:
    """One batched UNet call: entries of one batch key."""

    entries: tuple[UnetEntry, ...]
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class UnetPlan:
    """A UNet worker's part of a tick."""

    leader_token: int
    tick: int
    items: tuple[UnetItem, ...]


@dataclass(frozen=True)
class DecodeEntry:
    """Decode the latents in a slot into an image file. Sizes in pixels.

    The decode is cut into `chunks` equal parts of its work; this item does those from `first_chunk` up to `end_chunk`,
    and the items before it in the same tick did the ones before. `exact`: decoded alone and whole.
    """

    task_id: str
    arena_address: str
    slot: SlotRef
    width: int
    height: int
    image_format: ImageFormat
    parameters_json: str
    chunks: int = 1
    first_chunk: int = 0
    end_chunk: int = 1
    exact: bool = False


@dataclass(frozen=True)
class VaeItem:
    """Decodes of one latent shape, batched where they do the same chunks."""

    entries: tuple[DecodeEntry, ...]
    execution: Execution = field(default_factory=Execution)


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

    @classmethod
    def _missing_(cls, value: object) -> "SkipReason":
        """A reason that only a newer worker knows: the task runs again."""
        log.warning("an entry was skipped for an unknown reason", reason=value)
        return cls.UNKNOWN_TASK


@dataclass(frozen=True)
class SkippedEntry:
    """An entry that no longer applied, which is never an error. `next_call`, with OTHER_CALL: where the task stands."""

    task_id: str
    reason: SkipReason
    next_call: int = 0


@dataclass(frozen=True)
class ItemTiming:
    """One item as it ran; wall clock, so that both workers of a domain line up. Rows: UNet rows or images.

    In the order of the plan's items. `waited_ms`: how long the worker waited for the other one before it started.
    `halved`: fewest rows or images that memory did not suffice for at once, and that were run in halves; 0: it did.
    `peak_bytes`: most device memory that the worker held at once during the plan; 0 where the device does not count it.
    """

    start_unix_ns: int
    end_unix_ns: int
    rows: int
    waited_ms: float = 0.0
    halved: int = 0
    peak_bytes: int = 0

    @property
    def ms(self) -> float:
        """How long it ran."""
        return (self.end_unix_ns - self.start_unix_ns) / 1e6


@dataclass(frozen=True)
class GuidanceDrift:
    """How far the prediction of a task's D was off at a guided call after others that skipped: |D - D'| / |D|."""

    task_id: str
    call: int
    drift: float


@dataclass(frozen=True)
class UnetTickDone:
    """Results of a UNet plan. `finished`: tasks whose last call is done, with the slot of their latents."""

    tick: int
    items: tuple[ItemTiming, ...]
    skipped: tuple[SkippedEntry, ...]
    finished: tuple[tuple[str, SlotRef], ...]
    drifts: tuple[GuidanceDrift, ...] = ()


@dataclass(frozen=True)
class VaeTickDone:
    """Results of a VAE plan. The image files of `decoded` come on a stream of their own."""

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
    """A task that a worker still holds when a leader attaches. `slot` is set once finished; `skipped_calls`: so far."""

    task_id: str
    next_call: int
    num_calls: int
    slot: SlotRef | None
    skipped_calls: tuple[int, ...] = ()


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
