"""The UNet stage: a worker's model, loaded and tried, and the worker."""

from services.unet_worker.model import load_model, warm_up
from services.unet_worker.service import add_services
from services.unet_worker.settings import UnetWorkerSettings
from services.unet_worker.worker import UnetWorker
from synerdiff.latents.arena import create_arena
from synerdiff.models.compiled import CompiledUnet
from synerdiff.models.compiled.components import Request
from synerdiff.models.compiled.exported import conditioning_of, unet_inputs
from synerdiff.models.device import Device, DeviceOptions
from synerdiff.models.dtypes import dtype_from_name, dtype_name
from synerdiff.models.family import UnetSide
from synerdiff.models.memory_format import settle_memory_format
from synerdiff.rpc import ServiceHost
from synerdiff.worker.loading import Stage

# Rows of the call by which the weights' memory format is chosen.
_TYPICAL_ROWS = 16


class UnetStage(Stage[UnetWorkerSettings]):
    """A UNet worker's."""

    kind = "unet"
    side: UnetSide
    compiled: CompiledUnet

    def __init__(self, settings: UnetWorkerSettings) -> None:
        graphs, share, benchmark = settings.cuda_graphs, settings.memory_share, settings.cudnn_benchmark
        super().__init__(settings, DeviceOptions(graphs, memory_share=share, cudnn_benchmark=benchmark))

    def load_model(self, device: Device) -> None:
        """See Stage."""
        settings = self.settings
        self.side, self.card = load_model(
            settings.model,
            dtype_from_name(settings.dtype, device),
            name=settings.model_name,
            variant=settings.variant,
            device=device,
            max_side=settings.max_side or None,
            replacement=settings.replacement(),
        )

    def make_ready(self, request: Request, rehearse: bool) -> None:
        """See Stage. No request pays for a capture: every common batch size is captured here."""
        side, most_rows = self.side, 2 * self.settings.slots
        self.compiled = CompiledUnet(side, request, most_rows if rehearse else 0)
        inputs = unet_inputs(side, side.latent_shape(*side.native_size), _TYPICAL_ROWS)

        def call(rows: int) -> None:
            latents, timesteps, *conditioning = (one[:rows] for one in inputs)
            side.predict(latents, timesteps, conditioning_of(*conditioning))

        # Before any graph is captured, which would go on with the weights where they lay.
        self.memory_format = settle_memory_format(side.unet, call, side.compute, _TYPICAL_ROWS)
        self.compiled.capture_ahead(most_rows)
        warm_up(side, self.compiled, self.card)

    def open(self, worker_id: str, host: ServiceHost) -> UnetWorker:
        """See Stage."""
        settings, side = self.settings, self.side
        slot_bytes = largest_slot_bytes(side, self.card.max_side)
        worker = UnetWorker(
            worker_id,
            side,
            create_arena(settings.slots, slot_bytes, dtype_name(side.dtype), choice=settings.transport_choice()),
            threads=settings.threads,
            exact_threads=settings.exact_threads,
            embedding_cache_bytes=settings.embedding_cache_bytes,
            unet=self.compiled,
            card=self.card,
        )
        add_services(host, worker)
        return worker


STAGE = UnetStage


def largest_slot_bytes(side: UnetSide, max_side: int) -> int:
    """Bytes of the largest latents that may have to go into a slot."""
    channels, rows, columns = side.latent_shape(max_side, max_side)
    return channels * rows * columns * side.dtype.itemsize
