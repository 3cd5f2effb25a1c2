"""Previews: the clean latents that a UNet call predicts, projected to a small PNG beside the running steps."""

import io
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from services.unet_worker import metrics
from services.unet_worker.denoiser import StepOutcome
from synerdiff.models.family import UnetSide
from synerdiff.models.serving import PreviewProjection
from synerdiff.models.threads import limit_torch_threads
from synerdiff.plans import Preview
from synerdiff.telemetry import get_logger

log = get_logger("previews")

MAX_WAITING = 64


class CleanLatents:
    """A UNet call's prediction of the clean latents.

    A model input is sqrt(a) clean + sqrt(1 - a) noise, with a = alphas_cumprod at its timestep, whatever the sampler:
    the scaling of model inputs is there to make it so.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self._prediction_type = scheduler_config.get("prediction_type", "epsilon")
        self._alphas_cumprod: Tensor = DDPMScheduler.from_config(scheduler_config).alphas_cumprod

    def predicted(self, model_input: Tensor, noise_pred: Tensor, timestep: float) -> Tensor:
        """[C, h, w], from one task's model input and guided noise_pred [C, h, w] fp32 at a timestep of training."""
        alpha = self._alphas_cumprod[min(max(round(timestep), 0), len(self._alphas_cumprod) - 1)].item()
        if self._prediction_type == "sample":
            return noise_pred
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        if self._prediction_type == "v_prediction":
            return torch.sub(signal * model_input, noise_pred, alpha=noise)
        return torch.sub(model_input, noise_pred, alpha=noise).div(signal)


@dataclass(frozen=True)
class _Moment:
    """One task at one call, as the step left it."""

    task_id: str
    call: int
    timestep: Tensor
    model_input: Tensor
    noise_pred: Tensor


class PreviewEncoder:
    """Makes previews on a thread of its own and hands them to `deliver` there. Drops previews where it falls behind."""

    def __init__(self, unet_side: UnetSide, deliver: Callable[[Preview], None]) -> None:
        self._projection = unet_side.preview
        self._clean = CleanLatents(unet_side.scheduler_config)
        self._deliver = deliver
        self._room = threading.Semaphore(MAX_WAITING)
        self._executor = ThreadPoolExecutor(1, "previews", initializer=limit_torch_threads, initargs=(1,))

    def submit(self, task_id: str, call: int, outcome: StepOutcome, place: int) -> None:
        """Ask for a preview of the task at `place` of a call's batch, after `call` UNet calls. Never blocks."""
        if self._projection is None:
            return
        if not self._room.acquire(blocking=False):
            metrics.PREVIEWS_DROPPED.inc()
            return
        moment = _Moment(task_id, call, outcome.timesteps[place], outcome.model_input[place], outcome.noise_pred[place])
        self._executor.submit(self._encode, self._projection, moment)

    def close(self) -> None:
        """Drop waiting previews and end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _encode(self, projection: PreviewProjection, moment: _Moment) -> None:
        self._room.release()
        try:
            self._deliver(Preview(moment.task_id, moment.call, self._png(projection, moment)))
        except Exception as error:  # nothing depends on a preview
            log.warning("no preview", task_id=moment.task_id, exc_info=error)

    @torch.inference_mode()
    def _png(self, projection: PreviewProjection, moment: _Moment) -> bytes:
        clean = self._clean.predicted(moment.model_input.cpu(), moment.noise_pred.cpu(), float(moment.timestep))
        file = io.BytesIO()
        Image.fromarray(projection.images(clean[None])[0]).save(file, "PNG")
        return file.getvalue()
