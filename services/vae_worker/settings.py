"""What a VAE worker can be told."""

from pathlib import Path

from pydantic import Field

from synerdiff.settings import ServiceSettings


class VaeWorkerSettings(ServiceSettings):
    """Settings of `python -m services.vae_worker`."""

    model: Path = Field(Path("models/emoji/model"), description="model directory in diffusers layout, safetensors only")
    model_name: str = Field("", description="the name clients ask for; empty: the directory's own name")
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="dtype of the VAE; auto: bfloat16 where the CPU does it natively, float16 on GPUs, else float32",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the VAE runs: cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a decode; 0: as many as there are cores")
    encode_threads: int = Field(2, ge=1, le=64, description="threads that encode image files beside the decodes")
    safety_checker: bool = Field(True, description="run the safety checker that the model directory may carry")
    outbox_bytes: int = Field(
        512 * 2**20, ge=2**20, le=2**40, description="most bytes of image files kept until the leader has stored them"
    )
    worker_id: str = Field("", description="this worker's name in the registry; empty: drawn at start")
    domain: str = Field("", description="the domain whose device it shares; empty: the GPU's UUID, or this host")
    registry_ttl_s: float = Field(
        5.0, ge=1, le=300, description="seconds after which a silent worker is taken for gone; renewed at a third of it"
    )
