"""The subject of a package and its name on disk: another subject never gets it."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

import torch

Component = Literal["unet", "vae"]

# To be raised by whoever changes how packages are made: older ones are compiled anew.
RECIPE = 2

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class CompileSubject:
    """One component of a model directory, at one latent shape [C, h, w].

    `component_digest` is that of the served component (see `digest.module_digest`): the package has its weights.
    `variant` names the weight files, as for `loading.load_unet_side`.
    """

    component: Component
    model: str
    component_digest: str
    dtype: str
    latent_shape: tuple[int, int, int]
    variant: str = "auto"

    @property
    def key(self) -> str:
        """Twenty hex digits over all that the machine code depends on; where the directory lies is not part of that."""
        told = asdict(self) | {"model": "", "recipe": RECIPE, "torch": torch.__version__, "cpu": _instruction_sets()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def file_name(self) -> str:
        """Of the package in a store."""
        return f"{self.component}-{'x'.join(map(str, self.latent_shape))}-{self.dtype}-{self.key}.pt2"

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A subject from the text of `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"latent_shape": tuple(fields["latent_shape"])})


@cache
def _instruction_sets() -> str:
    """The CPU's flags, as compilers for "native" see them; the architecture where the kernel lists none."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(flags.split()))}"
