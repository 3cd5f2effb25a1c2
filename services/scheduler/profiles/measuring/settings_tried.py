"""Other settings than the default: tried against it on a few items, kept only where one is surely faster. Pure."""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from services.scheduler.profiles.measuring.rounds import Probe
from services.scheduler.profiles.measuring.samples import Samples
from synerdiff.profiles import Evidence, Setting

_LEAST, _MOST = 4, 16  # runs of an item before it is compared, and after which nothing more is expected
_DEVIATIONS = 2.33  # of a normal error, that it exceeds one way once in a hundred times


class _Compared(NamedTuple):
    """The logarithm of an item's time over that by default, and the ends of its interval."""

    log_ratio: float
    low: float
    high: float


class SettingTried:
    """One of them. It is `better` once it is faster by over `bound` on some item, for sure; else the default stays."""

    def __init__(self, samples: Samples, setting: Setting, default: Setting, bound: float) -> None:
        self.setting = setting
        self.better = False
        self.settled = False
        self._samples = samples
        self._default = default
        self._bound = bound
        self._items: tuple[tuple[int, int], ...] = ()

    def wanted(self, items: Sequence[tuple[int, int]]) -> list[Probe]:
        """What to run next to know, of `items` (rows, decodes); nothing once it is settled."""
        self._items = self._items or tuple(items)
        if self.settled:
            return []
        probes = [Probe(*item, setting) for item in self._items for setting in (self.setting, self._default)]
        least = min(self._samples.count(probe) for probe in probes[::2])
        if least >= _LEAST:
            compared = [self._compared(item) for item in self._items]
            self.better = any(each.high < -self._bound for each in compared)
            self.settled = self.better or least >= _MOST or all(each.low > -self._bound for each in compared)
        return [] if self.settled else probes

    def evidence(self) -> Evidence | None:
        """What is known of it by now, of the item on which it does best."""
        if not self._items or any(not self._samples.count(Probe(*item, self.setting)) for item in self._items):
            return None
        best = min(self._items, key=lambda item: self._compared(item).log_ratio)
        each, runs = self._compared(best), self._samples.count(Probe(*best, self.setting))
        return Evidence(_name(self.setting), exp(each.log_ratio), exp(each.low), exp(each.high), runs, self.better)

    def _compared(self, item: tuple[int, int]) -> _Compared:
        log_ratio, error = self._samples.ratio(Probe(*item, self.setting), Probe(*item, self._default))
        return _Compared(log_ratio, log_ratio - _DEVIATIONS * error, log_ratio + _DEVIATIONS * error)


def _name(setting: Setting) -> str:
    sides = (("UNet", setting.unet_threads), ("VAE", setting.vae_threads))
    return "threads: " + " + ".join(f"{side} {count}" for side, count in sides if count)
