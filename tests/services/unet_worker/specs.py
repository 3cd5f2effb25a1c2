"""Task specs for tests."""

from dataclasses import replace
from typing import Any

from synerdiff.cards import Sampler
from synerdiff.requests import TaskSpec

_SPEC = TaskSpec(
    task_id="job/0",
    prompt="a slice of pizza",
    negative_prompt="",
    width=64,
    height=64,
    num_inference_steps=3,
    guidance_scale=4.0,
    seed=7,
    sampler=Sampler.DDIM,
    preview_every=0,
)


def spec(task_id: str = "job/0", **changes: Any) -> TaskSpec:
    """A small guided task; `changes` by field."""
    return replace(_SPEC, task_id=task_id, **changes)
