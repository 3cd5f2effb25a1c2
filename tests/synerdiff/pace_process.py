"""The other worker of a pair, told what to do in JSON lines; in a process of its own, so that it can be killed."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from synerdiff.pace import PaceSide, SharedPace
from synerdiff.plans import ItemRef
from tests.told_process import ToldProcess, obey, told
from tests.waiting import HANG_S


@contextlib.contextmanager
def partner(name: str, directory: Path) -> Iterator[ToldProcess]:
    """The VAE's side of the pace `name`."""
    with told(__name__, name, str(directory)) as other:
        other.answer()
        yield other


class _Commands:
    def __init__(self, pace: SharedPace) -> None:
        self._pace = pace

    def ended(self, tick: int, place: int) -> None:
        self._pace.ended(ItemRef(tick, place))

    def wait(self, tick: int, place: int, patience_ms: float) -> float:
        return self._pace.wait(ItemRef(tick, place), patience_ms)

    def count(self, first: int, rounds: int) -> None:
        """Write ever larger words, whose two halves agree, as fast as it goes."""
        for k in range(first, first + rounds):
            self._pace.ended(ItemRef(k << 16 | (k & 0xFFFF), k & 0xFFFF))

    def take_turns(self, rounds: int, work_ms: float, nap_ms: float) -> dict[str, list[float]]:
        """End an item, wait for the other side's of the tick, nap. Returns when waits were over, and naps' lengths."""
        woke_ns, naps_ms = list[float](), list[float]()
        for tick in range(1, rounds + 1):
            time.sleep(work_ms / 1000)
            self._pace.ended(ItemRef(tick, 1))
            self._pace.wait(ItemRef(tick, 1), HANG_S * 1000)
            woke_ns.append(time.monotonic_ns())
            time.sleep(nap_ms / 1000)
            naps_ms.append((time.monotonic_ns() - woke_ns[-1]) / 1e6)
        return {"woke_ns": woke_ns, "naps_ms": naps_ms}


def main() -> None:
    pace = SharedPace(sys.argv[1], PaceSide.VAE, Path(sys.argv[2]))
    commands = _Commands(pace)
    print(json.dumps("open"), flush=True)
    obey(commands)
    pace.close()


if __name__ == "__main__":
    main()
