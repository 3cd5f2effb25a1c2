"""Settings of every stage worker, beside those of every service."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from synerdiff.host import usable_cores
from synerdiff.latents.transports import TransportChoice
from synerdiff.mps import device_ordinal
from synerdiff.settings import OptionalFile, ServiceSettings

DTYPES = "^(auto|float32|bfloat16|float16)$"
CompileMode = Literal["auto", "off", "wait"]


class WorkerSettings(ServiceSettings):
    """Settings that UNet and VAE workers share."""

    model: Path = Field(Path("models/emoji/model"), description="model directory in diffusers layout, safetensors only")
    model_name: str = Field("", description="the name clients ask for; empty: the directory's own name")
    variant: str = Field(
        "auto",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="weight files to take: auto, empty (the plain ones) or a variant",
    )
    dtype: str = Field(
        "auto",
        pattern=DTYPES,
        description="dtype of the model; auto: bfloat16 on CPUs that have it, float16 on GPUs, else float32",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the model runs: cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads it computes with; 0: as many as there are cores")
    exact_threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of exact pictures, which depend on it: the same for all workers"
    )
    compile: CompileMode = Field(
        "auto",
        description="on CPUs: compile the model; auto: in the background, wait: before this worker serves, off: never",
    )
    compile_cache: OptionalFile = Field(
        None, description="where compiled models are kept; none: synerdiff/compiled in the user's cache folder"
    )
    compile_cache_bytes: int = Field(8 * 2**30, ge=2**20, le=2**50, description="most bytes of compiled models kept")
    compile_limit_s: float = Field(3600.0, gt=0, le=86400, description="longest time that compiling one part may take")
    compile_memory_bytes: int = Field(
        8 * 2**30, ge=2**28, le=2**50, description="most memory of the process that compiles"
    )
    rehearse: bool = Field(
        True, description="on CPUs: make the first call of every batch size, which takes longer, while there is no load"
    )
    cuda_graphs: bool = Field(True, description="on GPUs: replay a captured CUDA graph per batch shape")
    memory_limit_bytes: int = Field(
        0,
        ge=0,
        le=2**50,
        description="on GPUs: most device memory to take; 0: as CUDA MPS allows, or memory_share of the device",
    )
    memory_share: float = Field(
        0.6, gt=0, le=1, description="on GPUs: part of the memory to take without memory_limit_bytes or a limit of MPS"
    )
    cudnn_benchmark: bool = Field(
        True, description="on GPUs: let cuDNN time its kernels at the first call of a shape; batches have few shapes"
    )
    require_mps: bool = Field(
        False, description="on GPUs: refuse to start without a CUDA MPS daemon; without it workers take turns on a GPU"
    )
    latents_transports: str = Field(
        "cuda_ipc,shm",
        pattern="^((cuda_ipc|shm)(,(cuda_ipc|shm))*)?$",
        description="ways for latents to try before gRPC messages, best first: cuda_ipc, shm; empty: none",
    )
    worker_id: str = Field("", description="this worker's name in the registry; empty: random")
    domain: str = Field("", description="the domain whose device it shares; empty: the GPU's UUID, or this host")
    registry_ttl_s: float = Field(
        5.0, ge=1, le=300, description="seconds after which a silent worker counts as gone; renewed at a third of it"
    )

    hang_limit_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="longest time at one item of a plan, after which liveness fails; 0: 600 s on GPUs, 3600 s on CPUs",
    )

    @model_validator(mode="after")
    def _check_worker_tls(self) -> Self:
        if self.tls_certificate and not self.tls_ca:
            raise ValueError("--tls-ca: a worker that serves TLS needs it, to know whom to obey")
        return self

    @model_validator(mode="after")
    def _check_exact_threads(self) -> Self:
        if self.exact_threads > usable_cores():
            raise ValueError(f"--exact-threads: {self.exact_threads} is more than the {usable_cores()} cores there are")
        return self

    @model_validator(mode="after")
    def _check_mps(self) -> Self:
        if self.require_mps and not self.device.startswith("cuda"):
            raise ValueError(f"--require-mps: is of no use with --device {self.device}; CUDA MPS shares GPUs")
        return self

    def transport_choice(self) -> TransportChoice:
        """The permitted transports of this worker's latents."""
        names = tuple(name for name in self.latents_transports.split(",") if name)
        return TransportChoice(names, device_ordinal(self.device) if self.device.startswith("cuda") else None)
