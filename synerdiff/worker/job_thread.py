"""Threads that do one job after another, and the time that each has spent on its present job."""

import queue
import threading
import time
from collections.abc import Callable

Job = Callable[[], object]


class Heartbeat:
    """The start of a thread's present job. That thread alone writes, any may read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._since_s: float | None = None

    def begin(self) -> None:
        """Something new begins."""
        self._since_s = time.monotonic()

    def rest(self) -> None:
        """There is nothing to do."""
        self._since_s = None

    def busy_s(self) -> float:
        """Seconds since its present job began; 0 while it rests."""
        since_s = self._since_s
        return 0.0 if since_s is None else time.monotonic() - since_s


class JobThread:
    """Does jobs in the order of their submission. One that raises ends the thread; `failed` gets the error there."""

    def __init__(self, name: str, failed: Callable[[Exception], None], set_up: Job = lambda: None) -> None:
        self.heartbeat = Heartbeat(name)
        self._failed = failed
        self._set_up = set_up
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Have a job done once all before it are."""
        self._jobs.put(job)

    def close(self) -> None:
        """Do all jobs submitted so far, then end the thread."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._set_up()
            while (job := self._jobs.get()) is not None:
                self.heartbeat.begin()
                job()
                del job  # or this thread would keep its memory while it waits
                self.heartbeat.rest()
        except Exception as error:
            self.heartbeat.rest()
            self._failed(error)
