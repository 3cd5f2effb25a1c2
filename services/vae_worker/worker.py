"""A VAE worker without its network: plans decoded in order, image files kept until stored. For the event loop."""

import asyncio

from services.vae_worker import metrics
from services.vae_worker.decode_loop import DecodeLoop
from services.vae_worker.decoder import BatchDecoder
from services.vae_worker.images import ImageEncoder, ImageOutbox
from synerdiff.errors import SynerDiffError
from synerdiff.latents.client import ArenaClient
from synerdiff.models.compiled.components import CompiledVae
from synerdiff.models.family import VaeSide
from synerdiff.pace import PaceSide
from synerdiff.plans import VaePlan
from synerdiff.stopping import cancel_and_wait, first_of
from synerdiff.worker.leader import Leader
from synerdiff.worker.stage_worker import StageWorker

# Plans may still be on their way for about this long after the leader knows that this worker drains.
_SETTLE_S = 1.0


class VaeWorker(StageWorker):
    """Its plans go with the leader; images that were made stay.

    `threads`, `exact_threads`: see StageWorker. `arenas`: where latents are read from; none: over every transport,
    without TLS. `vae`: how whole batches are decoded.
    """

    work, side, metrics = "decodes", PaceSide.VAE, metrics

    def __init__(
        self,
        worker_id: str,
        side: VaeSide,
        *,
        encode_threads: int,
        outbox_bytes: int,
        threads: int = 0,
        exact_threads: int = 1,
        arenas: ArenaClient | None = None,
        vae: CompiledVae | None = None,
    ) -> None:
        super().__init__(worker_id, side.compute, threads, exact_threads)
        self._arenas = arenas or ArenaClient()
        self.outbox = ImageOutbox(outbox_bytes)
        self._encoder = ImageEncoder(encode_threads, self.outbox, self.failure)
        decoder = BatchDecoder(side, vae.decode if vae else None)
        self.loop = DecodeLoop(decoder, self.device, self._arenas, self._encoder, self.failure)
        self._reading: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Plans, and images that are not stored."""
        return self.loop.plans_in_hand + len(self.outbox)

    def start(self) -> None:
        """Start the threads, and to read latents for them."""
        super().start()
        self._reading = asyncio.create_task(self.loop.run())
        self.failure.watch(self._reading, "the decode loop")

    async def close(self) -> None:
        """Close arenas and threads."""
        if self._reading is not None:
            await cancel_and_wait(self._reading)
        await super().close()
        await self._arenas.close()
        await asyncio.to_thread(self._encoder.close)

    async def take_over(self, leader: Leader) -> None:
        """The plans of the leader before are dropped, and an older one's stream of images ends."""
        self.device.abandon_plans()
        self.outbox.end_streams(older_than=leader.token)

    def left(self) -> None:
        """Drop the leader's plans."""
        self.device.abandon_plans()

    def end_streams(self, error: SynerDiffError | None = None) -> None:
        """That of images too."""
        super().end_streams(error)
        self.outbox.end_streams()

    def run_plan(self, plan: VaePlan, leader: Leader) -> None:
        """Queue a plan of the leader; a repeated or older one is ignored."""
        if self.accepts(plan.leader_token, plan.tick):
            self.loop.submit(plan, lambda report: self.tell(leader, report))

    async def until_done(self) -> None:
        """Wait until the plans in hand have run and a leader has stored their images, or there is none."""
        await first_of(asyncio.sleep(_SETTLE_S), self.leaderless())
        await self.loop.settled()
        await self._encoder.settled()
        await first_of(self.outbox.emptied(), self.leaderless())
