"""A request as the system works on it: every default filled in, every bound checked."""

from dataclasses import dataclass, field

from synerdiff.cards import Sampler
from synerdiff.json_codec import NamedEnum
from synerdiff.skip_cfg import SkipCfg


class ImageFormat(NamedEnum):
    """Image file formats of the public API, by the proto's numbers."""

    PNG = 1
    JPEG = 2
    WEBP = 3


class Priority(NamedEnum):
    """Priority classes, by the proto's numbers; a smaller number goes first."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(frozen=True)
class ImageRequest:
    """A validated request for `num_images` pictures. Image k has seed `seed + k`. Sizes in pixels.

    `timed`: whether the client set the timeout; else the server did. `exact`: the same picture to the bit, in any
    batch. `unet_weights`, `vae_weights`: digests of the only weights that may draw it, those served at its acceptance;
    empty where no worker of that kind served then.
    """

    request_id: str
    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    sampler: Sampler
    num_images: int
    image_format: ImageFormat
    priority: Priority
    timeout_ms: int
    preview_every: int
    skip_cfg: SkipCfg = field(default_factory=SkipCfg)
    timed: bool = False
    exact: bool = False
    unet_weights: str = ""
    vae_weights: str = ""


@dataclass(frozen=True)
class TaskSpec:
    """One image to denoise, as the UNet worker needs it. `task_id` is "<job_id>/<index>".

    `skip_predictor`: how guidance is predicted on calls that skip it, as `SkipPredictor.parse` reads it; empty for
    tasks that never skip. `exact`: its calls are made in batches of one size, whose rows do not affect each other.
    """

    task_id: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    sampler: Sampler
    preview_every: int
    skip_predictor: str = ""
    exact: bool = False

    @property
    def rows(self) -> int:
        """UNet rows per call: two when guided, one when not."""
        return rows_of_call(self.guidance_scale)


def rows_of_call(guidance_scale: float) -> int:
    """UNet rows of a call for one image: two where it is guided, one of them without the prompt."""
    return 2 if guidance_scale > 1 else 1


def task_id(job_id: str, index: int) -> str:
    """The id of image `index` of a job."""
    return f"{job_id}/{index}"


def task_spec(job_id: str, request: ImageRequest, index: int) -> TaskSpec:
    """Image `index` of a request as a task of its own."""
    return TaskSpec(
        task_id=task_id(job_id, index),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed + index,
        sampler=request.sampler,
        preview_every=request.preview_every,
        exact=request.exact,
    )
