"""What a VAE worker can be told."""

from pydantic import Field

from synerdiff.worker_settings import WorkerSettings


class VaeWorkerSettings(WorkerSettings):
    """Settings of `python -m services.vae_worker`."""

    encode_threads: int = Field(2, ge=1, le=64, description="threads that encode image files beside the decodes")
    safety_checker: bool = Field(True, description="run the safety checker that the model directory may carry")
    outbox_bytes: int = Field(
        512 * 2**20, ge=2**20, le=2**40, description="most bytes of image files kept until the leader has stored them"
    )
