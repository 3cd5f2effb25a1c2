"""The specs of policies, with mechanisms as fields that are switched one by one, and the speed of devices."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple

from services.scheduler.policy.snapshots import BatchKey
from synerdiff.profiles import UNPROFILED_TASKS, Mechanisms, Profile

# Of the throughput that the threshold may give up, a tenth goes to smaller batches: at 0.5 they make 5 % less.
_KNEE_SHARE = 0.1

Batching = Literal["request", "cohort", "step"]
Order = Literal["fifo", "sharing", "urgency"]
Planning = Literal["none", "decodes_first", "programme"]


@dataclass(frozen=True)
class PolicyBounds:
    """The settings that every policy shares. Counts are tasks (images), per worker. `unet_batch` bounds a batch where
    no knee is known or asked for; a policy that grows begins with it."""

    unet_batch: int = UNPROFILED_TASKS
    vae_batch: int = 4
    prepare_ahead: int = 4


@dataclass(frozen=True)
class Urgency:
    """The constants of the order of urgency.

    A task without a deadline of its own may take up to `fair_factor` times its time in order of acceptance, but no
    more than `tail_factor` times the P98 of that time over the latest tasks. It is pressed when its slack is below
    `guard_share` of that.
    """

    fair_factor: float = 2.0
    tail_factor: float = 1.0
    guard_share: float = 0.05


@dataclass(frozen=True)
class SkipPrices:
    """The least gain of a skipped guidance, in ms of summed completion time, and the gate for skipping at all.

    `busy_ms` while tasks wait for their turn, `idle_ms` while none does. `drift_gate`: a task whose predicted guidance
    was last off by more than this waits one call longer per multiple of it.
    """

    busy_ms: float = 0.0
    idle_ms: float = 1000.0
    drift_gate: float = 0.5


@dataclass(frozen=True)
class PolicySpec:
    """The mechanisms of a policy.

    `batching`: "request" serves one request at a time, "cohort" the whole requests that wait together, to their end;
    "step" lets tasks join and leave at every step. `order`: of the tasks; "sharing" advances all residents equally.
    `knee`: no more rows at once than the knee of the profiled throughput curve. `planning`: "none" decodes as soon as
    ready beside the UNet, "decodes_first" serves decodes alone before each round, "programme" asks the planner.
    `controller`: the threshold follows the load, else it is `threshold`. `chunking`, `plan_ahead` and `in_step`: None
    leaves each to the profile, which says whether it pays on the device. `round_weight`: ms of summed decode
    completion that a ms of the round is worth to each task that steps. `grows`: where no profile gives the size of
    batches, they grow for as long as throughput does. `round_decodes`: most decodes of one planned round. `await_ends`:
    no round is planned past the last call of a task, so that its decode is in the next one.
    """

    name: str
    batching: Batching = "step"
    order: Order = "fifo"
    knee: bool = False
    planning: Planning = "none"
    chunking: bool | None = False
    skip_cfg: bool = False
    controller: bool = False
    threshold: float = 1.0
    plan_ahead: int | None = 2
    in_step: bool | None = False
    urgency: Urgency = field(default_factory=Urgency)
    skip_prices: SkipPrices = field(default_factory=SkipPrices)
    round_weight: float = 1.0
    round_decodes: int = 8
    await_ends: bool = False
    grows: bool = False

    def mechanisms(self, profile: Profile | None, shares_cores: bool = False) -> Mechanisms:
        """The mechanisms in force with `profile`. Without one, workers that share cores take turns: two teams
        of threads on the same cores make each other wait."""
        pays = profile.mechanisms if profile else Mechanisms(in_step=shares_cores, beside=False, chunking=False)
        return Mechanisms(
            in_step=pays.in_step if self.in_step is None else self.in_step,
            beside=pays.beside,
            chunking=pays.chunking if self.chunking is None else self.chunking,
            plan_ahead=pays.plan_ahead if self.plan_ahead is None else self.plan_ahead,
        )


POLICIES = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            PolicySpec("static", batching="request"),
            PolicySpec("dynamic", batching="cohort"),
            PolicySpec("continuous"),
            PolicySpec("vae-first", planning="decodes_first", in_step=True),
            PolicySpec(
                "synerdiff",
                order="urgency",
                knee=True,
                planning="programme",
                chunking=None,
                skip_cfg=True,
                controller=True,
                plan_ahead=None,
                in_step=None,
                await_ends=True,
                grows=True,
            ),
        )
    }
)


class Costs(NamedTuple):
    """Device time of the least unit of each kind of work, when the device is run at its best.

    `row_ms`: one UNet row in an item of as many rows as give the highest throughput. `decode_ms`: the least
    that one more decode adds, beside such an item or alone.
    """

    row_ms: float
    decode_ms: float

    def task_ms(self, rows: float, decodes: float) -> float:
        """Device time of `rows` UNet rows, summed over calls, and `decodes` decodes."""
        return rows * self.row_ms + decodes * self.decode_ms


@lru_cache(maxsize=256)
def best_costs(profile: Profile) -> Costs:
    """The least device time per row and per decode within the profile's caps."""
    rows = max(range(1, 2 * profile.caps.unet + 1), key=lambda r: r / profile.latency_ms(r, 0))
    alone_ms = profile.latency_ms(rows, 0)
    decodes = []
    for v in range(1, profile.caps.vae + 1):
        decodes.append(profile.latency_ms(0, v) / v)
        beside = profile.choice(rows, v)
        if beside is not None:
            decodes.append(max(0.0, beside.ms - alone_ms) / v)
    return Costs(alone_ms / rows, min(decodes))


class Pace(NamedTuple):
    """`rows`: most UNet rows of a batch; a call of so many takes `call_ms`. `least_call_ms`: a call of a guided task
    that has the worker to itself. `decode_ms`: the device time of a decode."""

    rows: int
    call_ms: float
    least_call_ms: float
    decode_ms: float

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, profile: Profile, threshold: float = 1.0) -> "Pace":
        """The pace that the profile implies; the lower the threshold, the smaller and quicker its batches."""
        rows = min(profile.knee_rows(_KNEE_SHARE * (1 - threshold)), profile.caps.rows)
        return cls(rows, profile.latency_ms(rows, 0), profile.latency_ms(2, 0), best_costs(profile).decode_ms)

    @property
    def seats(self) -> int:
        """Tasks with guidance in a batch."""
        return max(1, self.rows // 2)


Paces = Mapping[BatchKey, Pace]


def paces_of(profiles: Iterable[tuple[BatchKey, Profile]], threshold: float = 1.0) -> dict[BatchKey, Pace]:
    """The pace of every batch key, of several profiles of one the first's. Exact tasks have the pace of others."""
    paces: dict[BatchKey, Pace] = {}
    for key, profile in profiles:
        for alike in (key, key._replace(exact=True)):
            paces.setdefault(alike, Pace.of(profile, threshold))
    return paces
