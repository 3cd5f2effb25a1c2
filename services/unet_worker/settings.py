"""What a UNet worker can be told."""

from pathlib import Path

from pydantic import Field

from synerdiff.settings import ServiceSettings


class UnetWorkerSettings(ServiceSettings):
    """Settings of `python -m services.unet_worker`."""

    model: Path = Field(Path("models/emoji/model"), description="model directory in diffusers layout, safetensors only")
    model_name: str = Field("", description="the name clients ask for; empty: the directory's own name")
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="what the UNet computes in; auto: bfloat16 on CPUs that have it, float16 on GPUs, else float32",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the UNet runs: cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of the step loop; 0: as many as there are cores")
    slots: int = Field(32, ge=1, le=4096, description="tasks held at once; each has its place in the latents arena")
    max_side: int = Field(0, ge=0, le=8192, description="longest side of a picture in pixels; 0: the model's own limit")
    embedding_cache_bytes: int = Field(
        64 * 2**20, ge=0, le=2**40, description="most bytes of encoded prompts kept for repeated use; 0 keeps none"
    )
    worker_id: str = Field("", description="this worker's name in the registry; empty: drawn at start")
    domain: str = Field("", description="the domain whose device it shares; empty: the GPU's UUID, or this host")
    registry_ttl_s: float = Field(
        5.0, ge=1, le=300, description="seconds after which a silent worker is taken for gone; renewed at a third of it"
    )
