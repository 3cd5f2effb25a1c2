"""Which leader a worker listens to: one at a time, the one with the highest token, and no plan of it twice."""

from synerdiff.errors import StaleLeader


class LeaderGuard:
    """Judges attaches and plans by leader token and tick. Not thread-safe: belongs to the worker's event loop."""

    def __init__(self) -> None:
        self._token = -1
        self._leader_id = ""
        self._tick = -1

    @property
    def token(self) -> int:
        """The highest token seen; -1 before the first attach."""
        return self._token

    def attach(self, token: int, leader_id: str = "") -> None:
        """Make `token`'s leader the one listened to. Raises StaleLeader for a lower token, or one held by another."""
        if token < self._token or (token == self._token and leader_id != self._leader_id):
            raise self.stale(token)
        if token > self._token:
            self._token, self._leader_id = token, leader_id
            self._tick = -1

    def stale(self, token: int) -> StaleLeader:
        """The refusal of a leader with `token`; it says above which the next one has to be."""
        message = f"leader token {token} is not above {self._token}, which holds this worker"
        return StaleLeader(message, newest_token=self._token)

    def accepts(self, token: int, tick: int) -> bool:
        """Whether a plan is the attached leader's and newer than all before it; if so it counts as seen."""
        if token != self._token or tick <= self._tick:
            return False
        self._tick = tick
        return True
