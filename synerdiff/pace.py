"""The progress of the two workers of a pair, so that items of a tick run in step without a message between them.

A file under /dev/shm has a machine word for each side, written by that side alone: the last item it ended, as
tick << 16 | place. Both have it mapped; a word is read and written in one piece. The first comer makes the file, the
last to leave removes it, and files of killed processes are swept when the next one is opened.

Waiting is bounded: plans are conditional, so a worker whose partner is late, gone or out of reach goes on by itself.
"""

import fcntl
import mmap
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path

from prometheus_client import Counter

from synerdiff.host import SHARED_MEMORY_DIRECTORY, boot_id, sweep
from synerdiff.plans import Execution, ItemRef
from synerdiff.telemetry import get_logger

PATIENCE_LOST = Counter("synerdiff_pace_patience_lost", "Items that went on without the item they were to come after")

_NAME_PREFIX = "synerdiff-pace-"
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_FILE_BYTES = mmap.PAGESIZE
_WORDS_APART = 8  # a cache line each, so that a side that writes does not take the other's word from its cache
_TICK_BITS, _PLACE_BITS = 48, 16
_FIRST_SLEEP_S, _LONGEST_SLEEP_S, _SLEEP_GROWTH = 50e-6, 500e-6, 1.5
_KEPT_OPEN = 4

log = get_logger("pace")


class PaceSide(IntEnum):
    """The side of a worker in its pair: the number of its word."""

    UNET = 0
    VAE = 1


class PaceUnusable(Exception):
    """The pair's file cannot be opened or made; items then run free."""


class SharedPace:
    """One side of one pair's progress. One thread at a time.

    Raises ValueError for a name that could lead out of the directory, and PaceUnusable where the file cannot be made or
    is not this user's plain file.
    """

    def __init__(self, name: str, side: PaceSide, directory: Path = SHARED_MEMORY_DIRECTORY) -> None:
        _check_name(name)
        self._path = directory / f"{_NAME_PREFIX}{boot_id()}-{name}"
        try:
            sweep(directory, _NAME_PREFIX)
            self._descriptor = _open_locked(self._path)
        except OSError as error:
            raise PaceUnusable(f"{self._path}: {error}") from error
        self._mmap = mmap.mmap(self._descriptor, _FILE_BYTES)
        self._words = memoryview(self._mmap).cast("Q")
        self._own = side * _WORDS_APART
        self._other = (1 - side) * _WORDS_APART
        self._lost_at: int | None = None

    def ended(self, item: ItemRef) -> None:
        """Publish that this side has ended an item and all before it. Raises ValueError for one that fits no word."""
        self._words[self._own] = max(_word(item), self._words[self._own])

    def wait(self, after: ItemRef, patience_ms: float, abandoned: Callable[[], bool] = lambda: False) -> float:
        """Sleep until the other side has ended `after`, patience is over or `abandoned`. Returns how long, in ms.

        After patience has run out, this waits for the other side again only once that has moved: a dead one costs one
        patience, not one per item. Raises ValueError for an item that fits no word.
        """
        target, reached = _word(after), self._words[self._other]
        if reached >= target:
            return 0.0
        if reached == self._lost_at:
            PATIENCE_LOST.inc()
            return 0.0
        started = time.perf_counter()
        patience_s, pause_s = patience_ms / 1000, _FIRST_SLEEP_S
        while not abandoned():
            waited_s = time.perf_counter() - started
            reached = self._words[self._other]
            if reached >= target:
                break
            if waited_s >= patience_s:
                self._lost_at = reached
                PATIENCE_LOST.inc()
                break
            time.sleep(min(pause_s, patience_s - waited_s))
            pause_s = min(pause_s * _SLEEP_GROWTH, _LONGEST_SLEEP_S)
        return (time.perf_counter() - started) * 1000

    def close(self) -> None:
        """Close the file, and remove it if the other side does not hold it."""
        self._words.release()
        self._mmap.close()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        except OSError:
            pass  # the other side holds it, and will remove it
        finally:
            os.close(self._descriptor)


class Pacer:
    """A worker's pace with the partners that its plans name. `before` is for its device thread alone, `after` for any
    thread, a few items later at most: files of partners that were not named for long are closed.

    The log names an unusable file of a pair once, and its items run free. Plans have passed `check_paced`.
    """

    def __init__(self, side: PaceSide, directory: Path = SHARED_MEMORY_DIRECTORY) -> None:
        self._side = side
        self._directory = directory
        self._lock = threading.Lock()
        self._paces: dict[str, SharedPace | None] = {}  # the one used last comes last

    def before(self, execution: Execution, abandoned: Callable[[], bool]) -> float:
        """Wait for the item that this one must follow. Returns the wait in ms."""
        with self._lock:
            pace = self._pace(execution.pace)
        if pace is None or execution.after is None:
            return 0.0
        return pace.wait(execution.after, execution.patience_ms, abandoned)

    def after(self, execution: Execution, tick: int) -> None:
        """Publish that an item of a tick has ended."""
        with self._lock:
            pace = self._pace(execution.pace)
            if pace is not None:
                pace.ended(ItemRef(tick, execution.place))

    def close(self) -> None:
        """Close every pair's file."""
        with self._lock:
            for pace in self._paces.values():
                if pace is not None:
                    pace.close()
            self._paces.clear()

    def _pace(self, name: str) -> SharedPace | None:
        if not name:
            return None
        if name in self._paces:
            self._paces[name] = self._paces.pop(name)
        else:
            self._paces[name] = self._open(name)
            self._close_beyond(_KEPT_OPEN)
        return self._paces[name]

    def _open(self, name: str) -> SharedPace | None:
        try:
            return SharedPace(name, self._side, self._directory)
        except PaceUnusable as error:
            log.warning("items run free: no pace with the other worker", reason=str(error))
            return None

    def _close_beyond(self, most: int) -> None:
        while len(self._paces) > most:
            oldest = self._paces.pop(next(iter(self._paces)))
            if oldest is not None:
                oldest.close()


def check_paced(tick: int, executions: Iterable[Execution]) -> None:
    """Raise ValueError for a plan whose items cannot be paced: a name, tick or place out of bounds."""
    for execution in executions:
        if execution.pace:
            _check_name(execution.pace)
            _word(ItemRef(tick, execution.place))
            if execution.after is not None:
                _word(execution.after)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"pace: {name!r} is not 1 to 64 of the characters a-z, 0-9 and -")


def _word(item: ItemRef) -> int:
    for name, value, bits in (("tick", item.tick, _TICK_BITS), ("place", item.place, _PLACE_BITS)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name}: {value} is not 0 to {(1 << bits) - 1}")
    return item.tick << _PLACE_BITS | item.place


def _open_locked(path: Path) -> int:
    while True:
        descriptor = _create_or_open(path)
        try:
            file = os.fstat(descriptor)
            if not stat.S_ISREG(file.st_mode) or file.st_uid != os.geteuid():
                raise PaceUnusable(f"{path} is not a plain file of this user")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # A sweeper, or the other side on its way out, may have removed it between open and flock.
            if os.fstat(descriptor).st_nlink:
                # Reserved now: a tmpfs that is full at the first touch would kill the process with SIGBUS.
                os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _create_or_open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                return os.open(path, flags)
            except FileNotFoundError:
                continue
