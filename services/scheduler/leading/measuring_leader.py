"""A leader that does nothing but measure: it drives the one pair of workers that a registry announces."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.scheduler.engine.events import Event, Reported, UnetAttached, VaeAttached, WorkerLost
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.leading.worker_streams import WorkerStreams
from services.scheduler.profiles.measuring.prober import ProbePair, Prober
from synerdiff.registry import WorkerRecord, WorkerRegistry
from synerdiff.telemetry import get_logger

log = get_logger("measuring")

_TOKEN = 1
_LOOK_EVERY_S = 0.1


class ProbeSession:
    """The workers' streams and the prober they report to. Reports before both are attached are dropped."""

    def __init__(self, registry: WorkerRegistry) -> None:
        self.prober: Prober | None = None
        self._registry = registry
        self.streams = WorkerStreams(_TOKEN, self)
        self._unet: UnetLaneState | None = None
        self._vae: VaeLaneState | None = None
        self._ticks = 0
        self._changed = asyncio.Event()

    async def attach(self, width: int = 0, height: int = 0) -> Prober:
        """Wait for a UNet and a VAE worker; the prober of this pair, at the model's native size where 0 is given."""
        records: dict[str, WorkerRecord] = {}
        while self._unet is None or self._vae is None:
            announced = await self._registry.workers()
            records = {record.worker_id: record for record in announced}
            self.streams.reconcile(announced)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_EVERY_S)
            self._changed.clear()
        unet, vae = records[self._unet.worker_id], records[self._vae.worker_id]
        pair = ProbePair(unet, vae, self._unet.slots, self._unet.arena_address)
        size = (width or unet.model_card.native_width, height or unet.model_card.native_height)
        self.prober = Prober(pair, size, _TOKEN, self.streams.send, self._next_tick)
        return self.prober

    def _next_tick(self) -> int:
        self._ticks += 1
        return self._ticks

    # ---- the Listener of the streams

    def on(self, event: Event) -> None:
        """A worker has attached, reported or gone; the prober, once there is one, gets the latter two."""
        match event:
            case UnetAttached(lane):
                self._unet = lane
                self._changed.set()
            case VaeAttached(lane):
                self._vae = lane
                self._changed.set()
            case Reported(worker_id, report) if self.prober:
                self.prober.reported(worker_id, report)
            case WorkerLost(worker_id) if self.prober:
                self.prober.abort(f"{worker_id} is gone")

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader has taken a worker."""
        if self.prober:
            self.prober.abort("another leader has taken the workers")

    def failed(self, error: BaseException) -> None:
        """A stream has met a fault."""
        log.error("a stream to a worker has failed", exc_info=error)
        if self.prober:
            self.prober.abort(f"a stream to a worker has failed: {error!r}")


@contextlib.asynccontextmanager
async def probing(registry: WorkerRegistry, width: int = 0, height: int = 0) -> AsyncIterator[Prober]:
    """The prober of the only pair of workers there is; the workers hold nothing of it afterwards."""
    session = ProbeSession(registry)
    try:
        prober = await session.attach(width, height)
        yield prober
        prober.close()
        await asyncio.sleep(0)  # the streams send their queued commands
    finally:
        await session.streams.close()
