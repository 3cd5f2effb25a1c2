"""Settings of a VAE worker."""

from pydantic import Field

from synerdiff.host import usable_cores
from synerdiff.worker_settings import DTYPES, WorkerSettings

_LEAST_ENCODERS, _MOST_ENCODERS = 2, 64


class VaeWorkerSettings(WorkerSettings):
    """Settings of `python -m services.vae_worker`."""

    encode_threads: int = Field(
        0, ge=0, le=64, description="threads that encode image files beside the decodes; 0: half the cores, at least 2"
    )
    memory_share: float = Field(
        0.3, gt=0, le=1, description="on GPUs: part of the memory to take without memory_limit_bytes or a limit of MPS"
    )
    cudnn_benchmark: bool = Field(
        False, description="on GPUs: let cuDNN time its kernels at the first decode of a shape; those are many in bands"
    )
    vae_dtype: str = Field(
        "auto",
        pattern=DTYPES,
        description="dtype of the VAE; auto: that of the model, float32 where its config asks for it (SDXL)",
    )
    safety_checker: bool = Field(True, description="run the safety checker that the model directory may carry")
    outbox_bytes: int = Field(
        512 * 2**20, ge=2**20, le=2**40, description="most bytes of image files kept until the leader has stored them"
    )

    def image_encoders(self) -> int:
        """Threads that encode image files."""
        return self.encode_threads or min(_MOST_ENCODERS, max(_LEAST_ENCODERS, usable_cores() // 2))
