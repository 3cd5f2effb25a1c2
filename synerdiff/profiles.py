"""Profiles: the latency of items on one device, and the settings that follow from it.

A profile is a value, measured by `synerdiff profile` and read by the planner. Cells of one `Setting` form a rectangular
grid over UNet rows and decodes; between grid points latency is interpolated linearly, beyond the last it follows the
last slope, and rows below the first count as the first. Nothing is interpolated between "alone" and "beside":
L(r, 0), L(0, v) and L(r, v) are grids of their own.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AllowInfNan, NonNegativeFloat, NonNegativeInt, PositiveInt

from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.json_codec import JsonCodec
from synerdiff.latency_grids import Grids
from synerdiff.skip_cfg import SkipCfgBudget

PROFILE_VERSION = 2
KNEE_WITHIN = 0.05  # of the best throughput: more rows than that takes only add latency
UNPROFILED_TASKS = 8  # of an item without a profile

Origin = Literal["measured", "given", "fitted", "interpolated", "assumed"]


_Finite = Annotated[NonNegativeFloat, AllowInfNan(False)]


class Setting(NamedTuple):
    """How an item is run: bands a decode is cut into, and each side's share of the device (CPU threads; 0: its own)."""

    chunks: PositiveInt = 1
    unet_threads: NonNegativeInt = 0
    vae_threads: NonNegativeInt = 0


@dataclass(frozen=True)
class Cell:
    """One measured item: `rows` UNet rows beside `decodes` decodes, each in `chunks` bands. Times in ms from its start.

    `median_ms` is of the whole item while nothing slows the machine down, `unet_ms` and `vae_ms` are when each side
    ends then; `p90_ms` is the 90th percentile of all runs. `error`: standard error of the time relative to others'.
    `peak_bytes`: most that both workers held at once; `unet_bytes` and `vae_bytes`: each one's device memory, where the
    device counts it. 0: not known.
    """

    rows: NonNegativeInt
    decodes: NonNegativeInt
    median_ms: _Finite
    p90_ms: _Finite
    setting: Setting = field(default_factory=Setting)
    unet_ms: _Finite = 0.0
    vae_ms: _Finite = 0.0
    peak_bytes: NonNegativeInt = 0
    samples: NonNegativeInt = 0
    origin: Origin = "measured"
    unet_bytes: NonNegativeInt = 0
    vae_bytes: NonNegativeInt = 0
    error: float = 0.0


@dataclass(frozen=True)
class ProfileSubject:
    """The subject of a profile. A profile of another subject is not used.

    `device` names the hardware, `latent_shape` is [C, h, w], `shares` the split of the device between the two workers.
    `execution`: "eager" or "compiled", of the UNet and the VAE if they differ.
    """

    model: str
    model_digest: str
    device: str
    dtype: str
    latent_shape: tuple[int, int, int]
    shares: str
    execution: str = "eager"


@dataclass(frozen=True)
class ItemCaps:
    """Most of one item: guided tasks, of two UNet rows each (of one row: half a task), and decodes."""

    unet: PositiveInt
    vae: PositiveInt

    @property
    def rows(self) -> int:
        """Most UNet rows of one item."""
        return 2 * self.unet

    def within(self, others: "ItemCaps") -> "ItemCaps":
        """The lower of each."""
        return ItemCaps(min(self.unet, others.unet), min(self.vae, others.vae))


@dataclass(frozen=True)
class Mechanisms:
    """The mechanisms that pay on this device, as measured; a policy's settings may override them.

    `in_step`: items of a tick wait for each other. `beside`: UNet steps and decodes share items. `chunking`: decodes
    span items by their bands. `plan_ahead`: plans under way per worker.
    """

    in_step: bool = True
    beside: bool = True
    chunking: bool = False
    plan_ahead: int = 2


@dataclass(frozen=True)
class Evidence:
    """Why something is on (`taken`) or off: time with over time without, in `pairs` runs; `low` to `high` at 95 %."""

    choice: str
    ratio: float
    low: float
    high: float
    pairs: int
    taken: bool


@dataclass(frozen=True)
class KneeFound:
    """The fewest rows whose throughput is within KNEE_WITHIN of the best, `low` to `high` at 95 %. `error`: its own."""

    rows: int
    low: int
    high: int
    error: _Finite


class Choice(NamedTuple):
    """The fastest known way to run an item, and how long it takes."""

    ms: float
    setting: Setting


@dataclass(frozen=True)
class Profile:
    """How long items take for one subject. Values are frozen: a correction makes a new profile with a new digest.

    `knee` and `evidence`: how sure the measurement's decisions are. `memory_format`: that of convolution weights during
    the measurement, of the UNet and the VAE if they differ; empty: not known.
    """

    subject: ProfileSubject
    cells: tuple[Cell, ...]
    caps: ItemCaps
    made_at: str
    skip_cfg: SkipCfgBudget | None = None
    mechanisms: Mechanisms = field(default_factory=Mechanisms)
    knee: KneeFound | None = None
    evidence: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    memory_format: str = ""
    version: int = PROFILE_VERSION
    _grids: dict[Setting, Grids] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        by_setting: dict[Setting, list[Cell]] = {}
        for cell in self.cells:
            by_setting.setdefault(cell.setting, []).append(cell)
        self._grids.update({setting: Grids.of(cells) for setting, cells in sorted(by_setting.items())})

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything a plan depends on."""
        return hashlib.sha256(dump(self).encode()).hexdigest()[:16]

    @cached_property
    def chunk_counts(self) -> tuple[int, ...]:
        """The band counts decodes were measured with, ascending."""
        return tuple(sorted({cell.setting.chunks for cell in self.cells if cell.decodes}))

    def choice(self, rows: int, decodes: float, chunks: int | None = None) -> Choice | None:
        """The fastest setting for an item of `rows` UNet rows and `decodes` decodes, or None if none was measured.

        `decodes` may be a fraction: some bands of a decode. `chunks`: only settings with that many bands, where the
        item decodes at all. An empty item takes no time.
        """
        if rows <= 0 and decodes <= 0:
            return Choice(0.0, Setting())
        best: Choice | None = None
        for setting, grids in self._grids.items():
            if decodes > 0 and chunks is not None and setting.chunks != chunks:
                continue
            ms = grids.latency_ms(rows, decodes)
            if ms is not None and (best is None or ms < best.ms):
                best = Choice(ms, setting)
        return best

    def latency_ms(self, rows: int, decodes: float, chunks: int | None = None) -> float:
        """The time of the fastest setting. Raises KeyError where no such item was measured."""
        best = self.choice(rows, decodes, chunks)
        if best is None:
            raise KeyError(f"the profile has no item of {rows} UNet rows beside {decodes:g} decodes")
        return best.ms

    def knee_rows(self, within: float = KNEE_WITHIN) -> int:
        """Fewest rows whose throughput alone is within `within` of the best up to the cap: more only add latency.

        A row count that was measured, or the cap: values between need not lie on a line. An unsure measurement changes
        the number that would run without a profile only where it is sure: to more if the knee is surely past that
        number, to fewer if those surely are enough.
        """
        default, found = 2 * UNPROFILED_TASKS, self.knee
        measured = {cell.rows for cell in self.cells if cell.rows and not cell.decodes}
        counts = sorted({*(rows for rows in measured if rows <= self.caps.rows), self.caps.rows})
        throughput = {rows: rows / self.latency_ms(rows, 0) for rows in counts}
        best = max(throughput.values())

        def enough(short: float) -> int:
            """The fewest rows with this share less than the best; all there are where none has."""
            return min((rows for rows in counts if throughput[rows] >= (1 - short) * best), default=counts[-1])

        if found is None:
            return enough(within)
        likely = enough(within) if found.low > default else min(enough(within), default)
        return sorted((likely, default, enough(within - found.error)))[1]

    def overlap_gain(self, rows: int, decodes: float) -> float:
        """1 - L(r, v) / (L(r, 0) + L(0, v)): the share of time that running side by side saves; negative: costs."""
        alone = self.latency_ms(rows, 0) + self.latency_ms(0, decodes)
        return 1 - self.latency_ms(rows, decodes) / alone

    def with_cells(self, cells: Iterable[Cell]) -> "Profile":
        """The same profile with other cells."""
        return replace(self, cells=tuple(cells))


# ---- as a file


@dataclass(frozen=True)
class _Versioned:
    version: int


_VERSION = JsonCodec(_Versioned, "profile")
_PROFILE = JsonCodec(Profile, "profile")


def dump(profile: Profile) -> str:
    """The profile as JSON for people: a line a cell, and a line for each piece of evidence."""
    fields = _PROFILE.fields(profile, without={"_grids"})
    cells, evidence = fields.pop("cells"), fields.pop("evidence")
    for told, cell in zip(cells, profile.cells, strict=True):
        told["setting"] = cell.setting._asdict()
    rows = {"evidence": evidence, "cells": cells}
    head = json.dumps(fields, indent=2, ensure_ascii=False)[:-2]
    return head + "".join(f',\n  "{name}": {_a_line_each(listed)}' for name, listed in rows.items()) + "\n}\n"


def _a_line_each(listed: Sequence[dict[str, Any]]) -> str:
    lines = ",\n".join(f"    {json.dumps(each)}" for each in listed)
    return f"[\n{lines}\n  ]" if lines else "[]"


def load(path: Path) -> Profile:
    """Read a profile file. Raises InvalidRequest, naming the file and its fault."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise _refused("profile", f"{path}: {error.strerror}") from error
    except InvalidRequest as error:
        raise _refused("profile", f"{path}: {error.message}") from error


def parse(text: str | bytes) -> Profile:
    """The profile that `dump` wrote. Raises InvalidRequest, naming the field and its valid form."""
    version = _VERSION.parse(text).version
    if version != PROFILE_VERSION:
        raise _refused("version", f"{version}; this SynerDiff reads version {PROFILE_VERSION}: profile the device anew")
    profile = _PROFILE.parse(text, whole=True)
    for number, cell in enumerate(profile.cells):
        if not cell.rows + cell.decodes:
            raise _refused(f"cells[{number}]", "0 rows beside 0 decodes is no item")
        if not 0 < cell.median_ms <= cell.p90_ms:
            raise _refused(
                f"cells[{number}]", f"median_ms {cell.median_ms} and p90_ms {cell.p90_ms}: 0 < median <= p90"
            )
    knee = profile.knee
    if knee and not 1 <= knee.low <= knee.rows <= knee.high:
        raise _refused("knee", f"{knee}: 1 <= low <= rows <= high")
    if profile.choice(1, 0) is None or profile.choice(0, 1) is None:
        raise _refused("cells", "each side must have been measured alone")
    return profile


def _refused(field_name: str, description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(field_name, description))
