"""Whether a worker's device still answers, for the probe that restarts the process where it does not."""

import asyncio
from collections.abc import Sequence

from synerdiff.rpc import ServiceHost
from synerdiff.telemetry import get_logger
from synerdiff.worker.job_thread import Heartbeat
from synerdiff.worker_settings import WorkerSettings

# Far above first calls, captures and the items of a machine slowed tenfold. A CPU may take minutes for a batch of a
# large model, and hangs by a fault of ours alone.
_GPU_LIMIT_S, _CPU_LIMIT_S = 600.0, 3600.0
_LOOKS, _LOOK_EVERY_S = 20, 5.0

log = get_logger("liveness")


class Liveness:
    """Looks at heartbeats: a thread that is at one thing for longer than `hang_limit_s` is stuck."""

    def __init__(self, heartbeats: Sequence[Heartbeat], settings: WorkerSettings) -> None:
        self._heartbeats = heartbeats
        self._limit_s = settings.hang_limit_s or (_CPU_LIMIT_S if settings.device == "cpu" else _GPU_LIMIT_S)

    @property
    def stuck(self) -> Heartbeat | None:
        """A thread that is stuck just now."""
        return next((one for one in self._heartbeats if one.busy_s() > self._limit_s), None)

    async def follow(self, host: ServiceHost) -> None:
        """Have `host` say so, until cancelled: not alive while a thread is stuck."""
        alive = True
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._limit_s / _LOOKS))
            stuck = self.stuck
            if alive and stuck:
                log.critical("a thread is stuck: not alive", thread=stuck.name, limit_s=self._limit_s)
            elif not alive and not stuck:
                log.warning("the thread goes on: alive again")
            if alive == bool(stuck):
                alive = not stuck
                await host.set_alive(alive)
