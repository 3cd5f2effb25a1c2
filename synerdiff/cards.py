"""Model cards: a worker's description of its model, and all that the scheduler knows of it.

Cards persist in Redis, so jobs of a known model without a worker are queued, and only an unknown model is refused.
"""

from dataclasses import dataclass
from typing import Any

from synerdiff.json_codec import NamedEnum
from synerdiff.skip_cfg import SkipCfgBudget


class Sampler(NamedEnum):
    """The samplers of the public API, by the proto's numbers. OWN: the model's own scheduler, if not among these."""

    DDIM = 1
    DDPM = 2
    PNDM = 3
    EULER = 4
    EULER_KARRAS = 5
    EULER_ANCESTRAL = 6
    DPMSOLVER_MULTISTEP = 7
    DPMSOLVER_MULTISTEP_KARRAS = 8
    DPMSOLVER_MULTISTEP_SDE = 9
    DPMSOLVER_MULTISTEP_SDE_KARRAS = 10
    DPMSOLVER_SINGLESTEP = 11
    DPMSOLVER_SINGLESTEP_KARRAS = 12
    DEIS_MULTISTEP = 13
    DEIS_MULTISTEP_KARRAS = 14
    HEUN = 15
    HEUN_KARRAS = 16
    KDPM2 = 17
    KDPM2_KARRAS = 18
    LCM = 19
    OWN = 20


_TWO_CALLS_A_STEP = frozenset({Sampler.HEUN, Sampler.HEUN_KARRAS, Sampler.KDPM2, Sampler.KDPM2_KARRAS})


def unet_calls(sampler: Sampler, num_inference_steps: int) -> int:
    """UNet calls of so many steps: two a step but for the last if second-order; OWN: see `SamplerLimits`."""
    if sampler in _TWO_CALLS_A_STEP:
        return 2 * num_inference_steps - 1
    return num_inference_steps + (sampler is Sampler.PNDM and num_inference_steps > 1)


@dataclass(frozen=True)
class SamplerLimits:
    """The num_inference_steps that a sampler takes with this model's scheduler config, both ends included.

    Of OWN also the UNet calls of n steps: `calls_per_step` * n + `extra_calls`.
    """

    sampler: Sampler
    min_num_inference_steps: int
    max_num_inference_steps: int
    calls_per_step: int = 1
    extra_calls: int = 0

    def unet_calls(self, num_inference_steps: int) -> int:
        """UNet calls of so many steps."""
        if self.sampler is Sampler.OWN:
            return self.calls_per_step * num_inference_steps + self.extra_calls
        return unet_calls(self.sampler, num_inference_steps)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """JSON of a newer version: a sampler that this one does not know is left out of its card."""
        from pydantic_core import core_schema

        return core_schema.with_default_schema(handler(source), on_error="omit")


@dataclass(frozen=True)
class ModelCard:
    """The values that requests for a model may ask for, and their defaults. Sizes in pixels.

    `latent_channels`: of its latents, 0 where that is not known. `skip_cfg`: how much guidance its pictures can do
    without, where that was measured. `scheduler`: the class of the model's own scheduler. `scheduler_refused`: why that
    is not served, and `default_sampler` stands in for it because the operator says so; empty where it is served.
    """

    name: str
    family: str
    native_width: int
    native_height: int
    size_multiple: int
    max_side: int
    default_num_inference_steps: int
    default_guidance_scale: float
    default_sampler: Sampler
    samplers: tuple[SamplerLimits, ...]
    max_prompt_tokens: int
    prediction_type: str
    skip_cfg: SkipCfgBudget | None = None
    latent_channels: int = 0
    scheduler: str = ""
    scheduler_refused: str = ""

    def limits(self, sampler: Sampler) -> SamplerLimits | None:
        """The limits of `sampler`, or None when this model does not have it."""
        return next((s for s in self.samplers if s.sampler == sampler), None)


@dataclass(frozen=True)
class ServedWeights:
    """A digest of weights (`digest.weights_digest`), and how many workers of a kind, unet or vae, serve it just now."""

    kind: str
    digest: str
    workers: int
