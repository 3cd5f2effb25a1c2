"""Settings of a UNet worker."""

from pydantic import Field

from synerdiff.cards import Sampler
from synerdiff.worker_settings import WorkerSettings


class UnetWorkerSettings(WorkerSettings):
    """Settings of `python -m services.unet_worker`."""

    replace_scheduler: str = Field(
        "",
        pattern=f"^({'|'.join(s.name.lower() for s in Sampler if s is not Sampler.OWN)})?$",
        description="sampler that stands in for a model's own scheduler that cannot be served; empty: refuse the model",
    )
    slots: int = Field(32, ge=1, le=4096, description="tasks held at once; each has its place in the latents arena")
    max_side: int = Field(0, ge=0, le=8192, description="longest side of a picture in pixels; 0: the model's own limit")
    embedding_cache_bytes: int = Field(
        64 * 2**20, ge=0, le=2**40, description="most bytes of encoded prompts kept for repeated use; 0 keeps none"
    )

    def replacement(self) -> Sampler | None:
        """The sampler that `replace_scheduler` names."""
        return Sampler[self.replace_scheduler.upper()] if self.replace_scheduler else None
