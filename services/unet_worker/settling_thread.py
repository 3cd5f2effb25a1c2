"""What has to wait for the device, done in order beside the thread that gives it work."""

import queue
import threading
from collections.abc import Callable

from synerdiff.models.device import DeviceFailed

Job = Callable[[], None]


class SettlingThread:
    """Does jobs one after another. `beside`: on a thread of its own; else at once, by whoever submits them.

    Without a thread nothing is left to wait for: that is for devices whose calls return when their work is done.
    `crashed` is told, there, of an error that a job ended with; no other job is done after it.
    """

    def __init__(self, beside: bool, crashed: Callable[[Exception], None]) -> None:
        self._beside = beside
        self._crashed = crashed
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._items = 0
        self._failed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)

    def start(self) -> None:
        """Start the thread, if there is to be one."""
        if self._beside:
            self._thread.start()

    def submit(self, job: Job) -> None:
        """Have a job done once all before it are."""
        if self._beside:
            self._inbox.put(job)
        else:
            job()

    def submit_item(self, job: Job) -> None:
        """The same for the end of an item: see `wait_for_fewer_items`."""
        with self._changed:
            self._items += 1
        self.submit(lambda: self._end_item(job))

    def wait_for_fewer_items(self, than: int) -> None:
        """Wait until the ends of fewer items are to be settled. Raises DeviceFailed when a job has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items < than or self._failed)
            if self._failed:
                raise DeviceFailed("what was given to the device before has failed")

    def close(self) -> None:
        """Do what was submitted before, then end the thread."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _end_item(self, job: Job) -> None:
        job()
        with self._changed:
            self._items -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            if self._failed:
                continue
            try:
                job()
            except Exception as error:
                self._crashed(error)
                with self._changed:
                    self._failed = True
                    self._changed.notify_all()
