"""Connections to Redis, and how long to keep trying when it is away or refuses for a while.

Two layers. The client itself repeats a command a few times within a fraction of a second, which hides a dropped
connection. The layer above hides a restart and logs the trouble: `patiently`, for seconds, or a loop of the caller's
own around `once`. Both repeat commands whose reply was lost, so every command through them must be safe to run twice.

While Redis is away or full hundreds of calls fail every second, for one reason. A process logs that reason once, each
further reason once, and the end.
"""

import asyncio
import builtins
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import tenacity
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError, NoPermissionError, ReadOnlyError, RedisError, TimeoutError

from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.telemetry import get_logger

CONNECTIONS = 64
SOCKET_TIMEOUT_S = 3.0

_KEEPS_ALL = "noeviction"

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

T = TypeVar("T")


def trouble(error: BaseException) -> str:
    """The passing trouble of Redis behind an error, in one line; "" for an error of another cause."""
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
    """The log lines of one process about its Redis. `failed_calls`: during the present trouble."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all trouble."""
        self._told: set[str] = set()
        self._since_s = self._last_s = 0.0
        self.failed_calls = 0

    def failed(self, error: BaseException) -> bool:
        """Log that a call has failed now. False, and no line, where the cause is not Redis."""
        reason = trouble(error) or (str(error) if isinstance(error, Unavailable | OSError) else "")
        if not reason:
            return False
        self.met(reason)
        return True

    def met(self, reason: str) -> None:
        """Log that Redis cannot be used now; the reason's text before its first colon is its kind."""
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
        """Note that Redis has taken a write now. Reads prove little: a full Redis answers them."""
        if self._told and time.monotonic() - self._last_s > CALM_S:
            lasted_s = round(self._last_s - self._since_s, 1)
            log.info("redis is well again", lasted_s=lasted_s, failed_calls=self.failed_calls)
            self.forget()


TROUBLE_LOG = RedisTroubleLog()


def _passes(error: BaseException) -> bool:
    return bool(trouble(error))


class _OnUvloop:
    """Adapts redis-py's connections to uvloop, which raises RuntimeError on a write after the peer's reset."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)  # type: ignore[misc]
        except RuntimeError as error:
            raise ConnectionResetError(str(error)) from error


class _PlainConnection(_OnUvloop, Connection):
    pass


class _TlsConnection(_OnUvloop, SSLConnection):
    pass


_CONNECTIONS: dict[type, type[Connection]] = {Connection: _PlainConnection, SSLConnection: _TlsConnection}


def connect(url: str) -> Redis:
    """A client of the Redis at `url`, in bytes, of at most CONNECTIONS sockets. Raises ValueError for a bad URL."""
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,  # replies keep one shape over redis-py versions
        decode_responses=False,
        max_connections=CONNECTIONS,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), retries=3),
        # A connection to a primary that has become a replica is made again: its name may lead to the new one by then.
        retry_on_error=[*AWAY, ReadOnlyError],
    )
    pool.connection_class = _CONNECTIONS.get(pool.connection_class, pool.connection_class)
    return Redis.from_pool(pool)


class EvictingRedis(SynerDiffError):
    """A Redis that drops data when memory is short: accepted jobs, their images, the leader's lock."""


async def check_keeps_all(redis: Redis) -> Mapping[str, Any]:
    """Raise EvictingRedis where the maxmemory-policy is not noeviction, even without a maxmemory: it may be set later.

    Returns the answer to `INFO memory`; {} where the Redis does not permit INFO. Raises redis's own errors.
    """
    try:
        memory: Mapping[str, Any] = await redis.info("memory")
    except NoPermissionError:
        return {}
    policy = str(memory.get("maxmemory_policy", _KEEPS_ALL))
    if policy != _KEEPS_ALL:
        raise EvictingRedis(
            f"redis: its maxmemory-policy is {policy}, which drops accepted jobs and images when memory is short; "
            f"it must be {_KEEPS_ALL} (redis-cli CONFIG SET maxmemory-policy {_KEEPS_ALL}, and in its configuration)"
        )
    return memory


async def once(call: Awaitable[T]) -> T:
    """`await call`. Raises Unavailable, which says why, where Redis is away or refuses for a while."""
    try:
        return await call
    except RedisError as error:
        if not TROUBLE_LOG.failed(error):
            raise
        raise Unavailable(trouble(error)) from error


async def patiently(call: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """`await call()`, again and again with back-off while Redis is away or refuses for a while.

    Raises Unavailable, which says why, after `patience_s` seconds; a try under way is cut short, and may still take
    effect. redis-py at times answers a cancellation with an error of its connection, so the end of the time is checked
    after every try as well.
    """
    why = ""

    async def attempt() -> T:
        nonlocal why
        try:
            return await call()
        except RedisError as error:
            why = trouble(error) or why
            TROUBLE_LOG.failed(error)
            raise

    try:
        async with asyncio.timeout(patience_s) as patience:
            try:
                return await attempt()  # nearly always enough, without the cost of the machinery below
            except RedisError as error:
                if not _passes(error) or patience.expired():
                    raise
            again = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(_passes),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
                stop=lambda state: patience.expired(),
                reraise=True,
            )
            return await again(attempt)
    except (builtins.TimeoutError, RedisError) as error:
        if isinstance(error, RedisError) and not _passes(error):
            raise
        unanswered = Unavailable(why or f"Redis gave no answer within {patience_s:.2g} s")
        TROUBLE_LOG.failed(unanswered)
        raise unanswered from error
