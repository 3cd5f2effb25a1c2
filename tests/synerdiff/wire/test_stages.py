"""Every plan and report comes back from its message as it went in."""

from collections.abc import Callable
from typing import Any

import pytest

from synerdiff import plans
from synerdiff.cards import Sampler
from synerdiff.requests import ImageFormat, TaskSpec
from synerdiff.wire import stages

SLOT = plans.SlotRef("arena", 3, 2**40)
IN_STEP = plans.Execution(place=2, threads=1, after=plans.ItemRef(2**40, 7), patience_ms=250, pace="ab12")
TIMING = plans.ItemTiming(10**18, 10**18 + 5_000_000, 12, waited_ms=1.5)
SKIPPED = plans.SkippedEntry("j/1", plans.SkipReason.OTHER_CALL, 4)
ENTRY = plans.DecodeEntry(
    "j/0", "host:1", SLOT, 128, 64, ImageFormat.WEBP, '{"seed": 1}', chunks=4, first_chunk=1, end_chunk=3
)

PAIRS: list[tuple[Any, Callable[..., Any], Callable[..., Any]]] = [
    (
        plans.UnetPlan(
            3,
            9,
            (plans.UnetItem((plans.UnetEntry("j/0", 4, True), plans.UnetEntry("j/1", 5)), IN_STEP), plans.UnetItem(())),
        ),
        stages.unet_plan_to_pb,
        stages.unet_plan_from_pb,
    ),
    (plans.VaePlan(3, 9, (plans.VaeItem((ENTRY,), IN_STEP),)), stages.vae_plan_to_pb, stages.vae_plan_from_pb),
    (
        plans.UnetTickDone(9, (TIMING,), (SKIPPED,), (("j/0", SLOT),), (plans.GuidanceDrift("j/0", 6, 0.25),)),
        stages.unet_tick_done_to_pb,
        stages.unet_tick_done_from_pb,
    ),
    (plans.VaeTickDone(9, (TIMING,), (SKIPPED,), ("j/0",)), stages.vae_tick_done_to_pb, stages.vae_tick_done_from_pb),
    (plans.ResidentTask("j/0", 4, 20, SLOT, (1, 3)), stages.resident_task_to_pb, stages.resident_task_from_pb),
    (plans.ResidentTask("j/0", 0, 0, None), stages.resident_task_to_pb, stages.resident_task_from_pb),
    (
        TaskSpec("j/0", "a", "b", 128, 64, 20, 4.5, 2**40, Sampler.HEUN, 5, "extrapolate:0.5"),
        stages.task_spec_to_pb,
        stages.task_spec_from_pb,
    ),
]


@pytest.mark.parametrize(("value", "to_pb", "from_pb"), PAIRS, ids=[type(value).__name__ for value, _, _ in PAIRS])
def test_it_comes_back_as_it_went(value: Any, to_pb: Callable[..., Any], from_pb: Callable[..., Any]) -> None:
    message = to_pb(value)
    assert from_pb(type(message).FromString(message.SerializeToString())) == value
