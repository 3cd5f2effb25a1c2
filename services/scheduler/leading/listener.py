"""The leader, as the streams to workers and the writer to Redis see it."""

from typing import Protocol

from services.scheduler.engine.events import Event


class Listener(Protocol):
    """A leader, or one that only measures. Called on the event loop; must not block, and does not raise."""

    def on(self, event: Event) -> None:
        """Something has happened."""

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader has taken over; `newest_token`: the newest that a worker has seen, 0 where nobody says."""

    def failed(self, error: BaseException) -> None:
        """A part that reports here cannot go on: the leadership that it is part of ends, and another begins."""
