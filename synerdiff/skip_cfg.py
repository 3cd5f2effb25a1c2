"""Skipping classifier-free guidance: a request's limits, a model's limits, and the prediction of the guidance.

A guided UNet call takes two rows, e_u and e_c, and answers e_u + w D with D = e_c - e_u. A call that skips guidance
takes the conditional row alone and answers e_c + (w - 1) D', with D' predicted from the task's last measured D. D is
in units of predicted noise, in which it changes least from call to call, for every prediction type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.json_codec import NamedEnum

_REMEMBERS = {"drop": 0, "reuse": 1, "extrapolate": 2}


class SkipCfgMode(NamedEnum):
    """The choice of the steps that skip guidance, by the proto's numbers."""

    AUTO = 1
    OFF = 2
    FIXED = 3


@dataclass(frozen=True)
class SkipCfg:
    """Limits of a request. AUTO: at most `max_fraction` of the steps (0: the server's bound). FIXED: just `steps`."""

    mode: SkipCfgMode = SkipCfgMode.AUTO
    max_fraction: float = 0.0
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class SkipPredictor:
    """The computation of D' from the last two measured D, `d1` and before it `d0`, on the calls since.

    `drop`: D' = 0, guidance is left out. `reuse`: D' = d1. `extrapolate`: d1 continued along the line from d0,
    `damping` times as far. Written "drop", "reuse", "extrapolate:0.5".
    """

    kind: str
    damping: float = 0.0

    @property
    def remembers(self) -> int:
        """The number of last measured D that the prediction uses."""
        return _REMEMBERS[self.kind]

    def weights(self, measured: Sequence[int], call: int) -> tuple[float, ...]:
        """The weight of each measured D in D' at `call`; `measured`: their calls, newest first, `remembers` at most.

        Before there are two D of calls after the first, extrapolating is reusing: a D of pure noise is off the line.
        """
        newest, before = (*measured, 0, 0)[:2]
        if not before:
            return (1.0, 0.0)[: len(measured)]
        slope = self.damping * (call - newest) / (newest - before)
        return 1 + slope, -slope

    @classmethod
    def parse(cls, text: str) -> "SkipPredictor":
        """Read the written form. Raises InvalidRequest naming the fault."""
        kind, colon, number = text.partition(":")
        if kind in ("drop", "reuse") and not colon:
            return cls(kind)
        try:
            damping = float(number)
        except ValueError:
            damping = -1.0
        if kind != "extrapolate" or not 0 < damping <= 2:
            problem = f"{text!r} is not drop, reuse or extrapolate:D with 0 < D <= 2"
            raise InvalidRequest(FieldViolation("skip_predictor", problem))
        return cls(kind, damping)

    def __str__(self) -> str:
        return f"{self.kind}:{self.damping:g}" if self.kind == "extrapolate" else self.kind


@dataclass(frozen=True)
class SkipCfgBudget:
    """A model's limits: its predictor of D, and how often calls may skip guidance for `floor_db` of PSNR.

    `predictor` as `SkipPredictor.parse` reads it; `share` of a task's calls; `longest_run` of skips in a row; the first
    `head` and the last `tail` calls are never skipped, nor any of a task with fewer than `least_calls` calls: the fewer
    there are, the further D moves between two. `measured_db`: mean PSNR against full guidance at that share.
    """

    predictor: str
    share: float
    longest_run: int
    head: int = 2
    tail: int = 1
    floor_db: float = 40.0
    measured_db: float = 0.0
    least_calls: int = 0


def spread(num_calls: int, share: float, longest_run: int, head: int, tail: int) -> tuple[int, ...]:
    """The calls of a task that skip guidance when nothing else decides: evenly spread, and as many as the bounds allow.

    At most `share` of `num_calls`, never the first `head` (at least one, so that a D is measured) nor the last `tail`,
    no more than `longest_run` in a row. Runs are as short as they can be and differ by one at most, the longer ones
    in the middle, since D moves fastest at both ends.
    """
    first, end = max(head, 1), num_calls - tail
    eligible = max(end - first, 0)
    most = eligible - eligible // (longest_run + 1)
    skips = min(int(share * num_calls + 1e-9), most)
    runs = eligible - skips + 1
    calls: list[int] = []
    at = first
    for length in _lengths(skips, runs):
        calls.extend(range(at, at + length))
        at += length + 1
    return tuple(calls)


def _lengths(skips: int, runs: int) -> list[int]:
    """How long each of the runs is; some are empty where there are fewer skips than runs."""
    if skips < runs:
        bounds = [(2 * run * skips + runs) // (2 * runs) for run in range(runs + 1)]
        return [end - start for start, end in pairwise(bounds)]
    length, longer = divmod(skips, runs)
    first = (runs - longer) // 2
    return [length + (first <= run < first + longer) for run in range(runs)]
