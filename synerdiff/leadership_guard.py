"""Which leader a worker listens to: one at a time, the one with the highest token, and no plan of it twice."""

from synerdiff.errors import StaleLeader


class LeaderGuard:
    """Judges attaches and plans by leader token and tick. Not thread-safe: belongs to the worker's event loop."""

    def __init__(self) -> None:
        self._token = -1
        self._tick = -1
        self._session = 0

    @property
    def token(self) -> int:
        """The highest token seen; -1 before the first attach."""
        return self._token

    def attach(self, token: int) -> int:
        """Make the leader with `token` the one that is listened to, and return the number of its session.

        A leader may attach again, which begins a newer session; its ticks go on counting.

        Raises:
            StaleLeader: a leader with a higher token has attached before.
        """
        if token < self._token:
            raise StaleLeader(f"leader token {token} is older than {self._token}, which holds this worker")
        if token > self._token:
            self._token = token
            self._tick = -1
        self._session += 1
        return self._session

    def is_current(self, session: int) -> bool:
        """Whether no other leader, and no newer stream of the same leader, has attached since `session` began."""
        return session == self._session

    def accepts(self, token: int, tick: int) -> bool:
        """Whether a plan is the attached leader's and newer than all before it; if so it counts as seen."""
        if token != self._token or tick <= self._tick:
            return False
        self._tick = tick
        return True
