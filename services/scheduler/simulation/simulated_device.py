"""A device under a virtual clock: the lanes of a UNet worker and a VAE worker, timed by a profile.

The model: an item of r rows beside v decodes takes L(r, v), and both sides of it end together. So while both lanes are
busy each gets through 1 / L(r, v) of its own part per ms, and 1 / L(r, 0) or 1 / L(0, v) while the other is not. Items
in step start together and take exactly L(r, v); lanes that run free slow down and speed up as the other comes and goes.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

from synerdiff.plans import ItemRef
from synerdiff.profiles import Profile

Action = Callable[[], None]


class Agenda:
    """What is to happen, in order of virtual time; what is due at the same moment, in order of entry."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._entered = count()
        self._heap: list[tuple[float, int, Action]] = []

    def at(self, when_ms: float, action: Action) -> None:
        """Enter something; what should already have been is due now."""
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), next(self._entered), action))

    def run_moment(self) -> bool:
        """Go on to the next moment at which something is due, and do all of that; False once there is nothing."""
        heap = self._heap
        if not heap:
            return False
        self.now_ms = heap[0][0]
        while heap and heap[0][0] == self.now_ms:
            heapq.heappop(heap)[2]()
        return True


class Work(NamedTuple):
    """One worker's part of an item. `after`: the item of the other lane that must have ended first."""

    ref: ItemRef
    after: ItemRef | None
    rows: int
    decodes: float
    chunks: int
    ended: Action


@dataclass
class Lane:
    """The work of one worker, in order. `left`: the part of `current` still to do, `per_ms` how fast it shrinks."""

    queue: deque[Work] = field(default_factory=deque)
    current: Work | None = None
    left: float = 0.0
    per_ms: float = 0.0
    timing: int = 0
    last_ended: ItemRef = field(default_factory=lambda: ItemRef(0, 0))


class SimulatedDevice:
    """Both lanes of one domain."""

    def __init__(self, agenda: Agenda, profile: Profile) -> None:
        self.unet = Lane()
        self.vae = Lane()
        self.busy_ms = 0.0
        self._agenda = agenda
        self._times = _ItemTimes(profile)
        self._looked_at_ms = 0.0
        self._changed = False

    def settle(self) -> None:
        """Start whatever may start now, and time anew what runs. To be called at the end of every moment."""
        self._start(self.unet, self.vae)
        self._start(self.vae, self.unet)
        if self._changed:
            self._changed = False
            self._retime()

    def _start(self, lane: Lane, other: Lane) -> None:
        if lane.current or not lane.queue:
            return
        after = lane.queue[0].after
        if after and (after.tick, after.place) > (other.last_ended.tick, other.last_ended.place):
            return
        self._progress()
        lane.current, lane.left = lane.queue.popleft(), 1.0
        self._changed = True

    def _progress(self) -> None:
        """Take off what has been done since the lanes were last looked at."""
        passed_ms = self._agenda.now_ms - self._looked_at_ms
        if passed_ms == 0:
            return
        self._looked_at_ms = self._agenda.now_ms
        if self.unet.current or self.vae.current:
            self.busy_ms += passed_ms
        for lane in (self.unet, self.vae):
            lane.left -= lane.per_ms * passed_ms

    def _retime(self) -> None:
        unet, vae = self.unet.current, self.vae.current
        rows = unet.rows if unet else 0
        decodes, chunks = (vae.decodes, vae.chunks) if vae else (0.0, 1)
        per_ms = 1.0 / self._times.ms(rows, decodes, chunks)
        for lane in (self.unet, self.vae):
            if lane.current and lane.per_ms != per_ms:
                self._progress()
                lane.per_ms = per_ms
                lane.timing += 1
                ends_ms = self._agenda.now_ms + max(0.0, lane.left) / per_ms
                self._agenda.at(ends_ms, partial(self._end, lane, lane.timing))

    def _end(self, lane: Lane, timing: int) -> None:
        work = lane.current
        if work is None or timing != lane.timing:
            return
        self._progress()
        lane.current, lane.per_ms, lane.last_ended = None, 0.0, work.ref
        self._changed = True
        work.ended()


class _ItemTimes:
    """The profile's times, remembered: an item's parts come back again and again."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._known: dict[tuple[int, float, int], float] = {}

    def ms(self, rows: int, decodes: float, chunks: int) -> float:
        """The time of an item by its fastest setting; where the two were never measured beside each other, in turn."""
        key = (rows, decodes, chunks)
        ms = self._known.get(key)
        if ms is None:
            choice = self._profile.choice(rows, decodes, chunks)
            if choice is None:
                alone = self._profile.choice(0, decodes, chunks) or self._profile.choice(0, decodes)
                ms = self._profile.latency_ms(rows, 0) + (alone.ms if alone else 0.0)
            else:
                ms = choice.ms
            ms = self._known[key] = max(ms, 1e-6)
        return ms
