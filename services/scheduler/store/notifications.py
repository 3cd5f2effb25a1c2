"""Redis pub/sub for a whole process over one connection, owned by one task.

Pub/sub forgets: a message published while the connection is down is gone. So a listener is woken once whenever its
subscription begins or begins again, and must look for itself; no listener may rely on messages alone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from synerdiff.redis_client import TROUBLE_LOG
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger

TURN_S = 0.05  # how long a new subscription may wait for the listening task
PING_AFTER_S = 5.0
SILENT_AFTER_S = 15.0  # no message and no pong for this long: the connection is dead, whatever TCP says
RECONNECT_AFTER_S = 0.5

log = get_logger("notifications")


class Subscription:
    """The messages heard on one channel since the last `wait`, repeats counted once."""

    def __init__(self) -> None:
        self._heard: set[bytes] = set()
        self._woken = asyncio.Event()

    def put(self, message: bytes | None) -> None:
        """Wake the waiter, with a message or with none."""
        if message is not None:
            self._heard.add(message)
        self._woken.set()

    async def wait(self, timeout_s: float | None) -> set[bytes]:
        """The messages heard; empty when the time is up or the subscription has just begun (again)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self._woken.clear()
        heard, self._heard = self._heard, set()
        return heard


class Notifications:
    """Subscriptions to channels. Reconnects by itself; `close` ends the listening task."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._listeners: dict[str, set[Subscription]] = {}
        self._subscribed: set[str] = set()
        self._changed = False
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def listen(self, channel: str) -> Iterator[Subscription]:
        """Listen on a channel while in the context. Needs a running event loop."""
        subscription = Subscription()
        self._listeners.setdefault(channel, set()).add(subscription)
        self._changed = True
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield subscription
        finally:
            listeners = self._listeners[channel]
            listeners.discard(subscription)
            if not listeners:
                del self._listeners[channel]
            self._changed = True

    async def messages(self, channel: str) -> AsyncGenerator[str, None]:
        """The messages of a channel as text, without end."""
        with self.listen(channel) as subscription:
            while True:
                for message in await subscription.wait(None):
                    yield message.decode()

    async def close(self) -> None:
        """Stop listening and give the connection back."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task)

    async def _run(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as connection:
                    await self._listen(connection)
            except Exception as error:  # of any kind: without this task no listener would hear a message any more
                if not TROUBLE_LOG.failed(error):
                    log.warning("pub/sub connection lost", error=repr(error))
            self._subscribed = set()
            self._changed = True
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def _listen(self, connection: PubSub) -> None:
        heard_at = pinged_at = time.monotonic()
        while time.monotonic() - heard_at < SILENT_AFTER_S:
            await self._follow_changes(connection)
            if not connection.subscribed:
                heard_at = time.monotonic()
                await asyncio.sleep(TURN_S)
                continue
            message = await connection.get_message(timeout=TURN_S)
            now = time.monotonic()
            if message is not None:
                heard_at = now
                self._deliver(message)
            elif now - max(heard_at, pinged_at) > PING_AFTER_S:
                pinged_at = now
                await connection.ping()

    async def _follow_changes(self, connection: PubSub) -> None:
        if not self._changed:
            return
        self._changed = False
        wanted = set(self._listeners)
        if new := wanted - self._subscribed:
            await connection.subscribe(*new)
        if old := self._subscribed - wanted:
            await connection.unsubscribe(*old)
        self._subscribed = wanted

    def _deliver(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("subscribe", "message"):
            return
        data = message["data"] if message["type"] == "message" else None
        for subscription in self._listeners.get(message["channel"].decode(), ()):
            subscription.put(data)
