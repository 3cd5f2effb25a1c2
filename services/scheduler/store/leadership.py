"""The leadership of a pool: one instance at a time, under a fencing token that rises with every change of leader.

The TTL only decides when another instance may try. The token keeps an old leader from doing harm: workers and every
leader script refuse an older one.
"""

import uuid

from redis.asyncio import Redis

from services.scheduler.store.scripts import Lease, Scripts


class Leadership:
    """One process's bid for one pool. `ttl_s`: how long a silent leader is waited for.

    `instance_id` may be that of an earlier life of the process, down to its process id. So each bid draws an id of its
    own: workers would refuse the token of the earlier life from a leader that they do not know.
    """

    def __init__(self, redis: Redis, pool: str, instance_id: str, ttl_s: float = 3.0) -> None:
        self._scripts = Scripts(redis)
        self._pool = pool
        self._instance_id = f"{instance_id}/{uuid.uuid4().hex}"
        self._ttl_ms = round(ttl_s * 1000)
        self._patience_s = ttl_s / 3

    async def acquire(self, above: int = 0) -> Lease | None:
        """The lease, if the pool has no leader or this bid has won it; None while another leads. Raises Unavailable.

        Its token is above `above`, the newest that this process has led under or that a worker has reported: a Redis
        that has lost its data would give out again those that workers have seen.
        """
        token = await self._scripts.run(
            "acquire_leadership", self._pool, self._instance_id, self._ttl_ms, above, patience_s=self._patience_s
        )
        return None if token is None else Lease(self._pool, token)

    async def renew(self, lease: Lease) -> bool:
        """Whether the lease still holds, for another TTL: call it every third of the TTL. Raises Unavailable. A lease
        whose TTL ran out is renewed as long as no other instance took the pool meanwhile."""
        renewed = await self._scripts.run(
            "renew_leadership", lease.pool, lease.token, self._instance_id, self._ttl_ms, patience_s=self._patience_s
        )
        return bool(renewed)

    async def resign(self, lease: Lease) -> None:
        """Make way for the next leader at once; nothing happens if there is one already. Raises Unavailable."""
        await self._scripts.run(
            "resign_leadership", lease.pool, lease.token, self._instance_id, patience_s=self._patience_s
        )
