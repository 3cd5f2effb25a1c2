"""The VAE stage: a worker's model, loaded and tried, and the worker."""

import torch

from services.vae_worker.decoder import decode_zeros
from services.vae_worker.service import add_services
from services.vae_worker.settings import VaeWorkerSettings
from services.vae_worker.worker import VaeWorker
from synerdiff.cards import ModelCard, Sampler
from synerdiff.latents.client import ArenaClient
from synerdiff.models.compiled.components import CompiledVae, Request
from synerdiff.models.compiled.exported import vae_inputs
from synerdiff.models.device import Device
from synerdiff.models.device.opening import dtype_from_name
from synerdiff.models.family import VaeSide
from synerdiff.models.loading import load_vae_side
from synerdiff.models.memory_format import settle_memory_format
from synerdiff.rpc import ServiceHost
from synerdiff.worker.loading import Stage

# Images of the decode by which the weights' memory format is chosen.
_TYPICAL_IMAGES = 4
_REHEARSED_IMAGES = 8


class VaeStage(Stage[VaeWorkerSettings]):
    """The stage of a VAE worker."""

    kind = "vae"
    side: VaeSide
    compiled: CompiledVae

    def load_model(self, device: Device) -> None:
        """See Stage."""
        settings = self.settings
        self.side = load_vae_side(
            settings.model,
            dtype_from_name(settings.dtype, device),
            vae_dtype=None if settings.vae_dtype == "auto" else dtype_from_name(settings.vae_dtype),
            variant=settings.variant,
            safety_checker=settings.safety_checker,
            device=device,
        )
        self.card = _card(settings.model_name or settings.model.resolve().name, self.side)

    def make_ready(self, request: Request, rehearse: bool) -> None:
        """See Stage."""
        side = self.side
        self.compiled = CompiledVae(side, request, _REHEARSED_IMAGES if rehearse else 0)
        (latents,) = vae_inputs(side, side.latent_shape(*side.native_size), _TYPICAL_IMAGES)
        with torch.no_grad():
            self.memory_format = settle_memory_format(
                side.vae, lambda images: side.vae.decode(latents[:images]), side.compute, _TYPICAL_IMAGES
            )
        decode_zeros(side)

    def open(self, worker_id: str, host: ServiceHost) -> VaeWorker:
        """See Stage."""
        settings = self.settings
        worker = VaeWorker(
            worker_id,
            self.side,
            encode_threads=settings.image_encoders(),
            outbox_bytes=settings.outbox_bytes,
            threads=settings.threads,
            exact_threads=settings.exact_threads,
            arenas=ArenaClient(settings.transport_choice(), tls=settings.worker_tls()),
            vae=self.compiled,
        )
        add_services(host, worker)
        return worker


STAGE = VaeStage


def _card(name: str, side: VaeSide) -> ModelCard:
    """A VAE worker's card has its model's name and geometry. The UNet workers' cards have the rest."""
    return ModelCard(
        name=name,
        family=side.family.name,
        native_width=0,
        native_height=0,
        size_multiple=side.scale_factor,
        max_side=0,
        default_num_inference_steps=0,
        default_guidance_scale=0.0,
        default_sampler=Sampler.DDIM,
        samplers=(),
        max_prompt_tokens=0,
        prediction_type="",
    )
