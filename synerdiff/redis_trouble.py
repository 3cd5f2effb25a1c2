"""What is the matter with Redis, where that passes; and the log of it.

While Redis is away or full hundreds of calls fail every second, for one reason. A process logs that reason once, each
further reason once, and the end.
"""

import time

from redis.exceptions import ConnectionError, RedisError, TimeoutError

from synerdiff.errors import Unavailable
from synerdiff.telemetry import get_logger

AWAY = (ConnectionError, TimeoutError)  # also BusyLoadingError, while Redis reads its file after a restart
CALM_S = 5.0  # no call has failed for so long: the trouble is over

# Error replies that pass by themselves, or once an operator has made room, by their first word.
_REFUSALS = {
    "OOM": "Redis is full",
    "READONLY": "Redis is read-only",
    "MISCONF": "Redis cannot write to its disk",
    "NOREPLICAS": "Redis has too few replicas to write",
    "MASTERDOWN": "Redis has lost its primary",
    "LOADING": "Redis reads its data",
    "BUSY": "Redis is busy with a script",
    "TRYAGAIN": "Redis moves its keys",
    "CLUSTERDOWN": "Redis is down",
    "FAILOVER": "Redis changes its primary",
    "NOAUTH": "Redis asks for a password",
    "NOPERM": "Redis does not permit it",
}

log = get_logger("redis")


def trouble(error: BaseException) -> str:
    """What is the matter with Redis, where it passes: one line. "" for an error that is no trouble of Redis's own."""
    word = _first_word(error)
    if word in _REFUSALS:
        return f"{_REFUSALS[word]}: {str(error).partition(' script: ')[0]}"  # and not on which line of which script
    return f"Redis is away: {error}" if isinstance(error, AWAY) else ""


def _first_word(error: BaseException) -> str:
    """The code of an error reply: redis-py cuts it off where it has a class of its own for it, and keeps it apart."""
    if not isinstance(error, RedisError):
        return ""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


class RedisTroubleLog:
    """The log lines of one process about its Redis. `failed_calls`: of the trouble that it has just now."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of no trouble."""
        self._told: set[str] = set()
        self._since_s = self._last_s = 0.0
        self.failed_calls = 0

    def failed(self, error: BaseException) -> bool:
        """A call has failed just now. False, and nothing is told, where that is no trouble of Redis's own."""
        reason = trouble(error) or (str(error) if isinstance(error, Unavailable | OSError) else "")
        if not reason:
            return False
        self.met(reason)
        return True

    def met(self, reason: str) -> None:
        """Redis is of no use just now; what stands before the first colon of the reason is its kind."""
        self._last_s = time.monotonic()
        self.failed_calls += 1
        kind = reason.partition(":")[0]
        if not self._told:
            self._since_s = self._last_s
            log.warning("redis is in trouble", reason=reason)
        elif kind not in self._told:
            log.warning("redis is in further trouble", reason=reason)
        self._told.add(kind)

    def wrote(self) -> None:
        """Redis has taken a write just now: reads alone say little, a full Redis answers them."""
        if self._told and time.monotonic() - self._last_s > CALM_S:
            lasted_s = round(self._last_s - self._since_s, 1)
            log.info("redis is well again", lasted_s=lasted_s, failed_calls=self.failed_calls)
            self.forget()


TROUBLE_LOG = RedisTroubleLog()
