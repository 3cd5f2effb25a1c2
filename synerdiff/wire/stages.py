"""stages.proto <-> synerdiff.plans: one pair of functions per type."""

from synerdiff.cards import Sampler
from synerdiff.plans import (
    DecodedImage,
    DecodeEntry,
    Execution,
    GuidanceDrift,
    ItemRef,
    ItemTiming,
    Preview,
    ResidentTask,
    SkippedEntry,
    SkipReason,
    SlotRef,
    TaskFailed,
    TaskReady,
    UnetEntry,
    UnetItem,
    UnetPlan,
    UnetTickDone,
    VaeItem,
    VaePlan,
    VaeTickDone,
)
from synerdiff.requests import ImageFormat, TaskSpec
from synerdiff.telemetry import get_logger
from synerdiff.v1 import images_pb2, stages_pb2

log = get_logger("wire")


def slot_ref_to_pb(slot: SlotRef) -> stages_pb2.SlotRef:
    """SlotRef as its message."""
    return stages_pb2.SlotRef(arena_id=slot.arena_id, index=slot.index, epoch=slot.epoch)


def slot_ref_from_pb(pb: stages_pb2.SlotRef) -> SlotRef:
    """SlotRef from its message."""
    return SlotRef(pb.arena_id, pb.index, pb.epoch)


def task_spec_to_pb(task: TaskSpec) -> stages_pb2.TaskSpec:
    """TaskSpec as its message."""
    return stages_pb2.TaskSpec(
        task_id=task.task_id,
        prompt=task.prompt,
        negative_prompt=task.negative_prompt,
        width=task.width,
        height=task.height,
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        seed=task.seed,
        sampler=images_pb2.Sampler.ValueType(task.sampler),
        preview_every=task.preview_every,
        skip_predictor=task.skip_predictor,
        exact=task.exact,
    )


def task_spec_from_pb(pb: stages_pb2.TaskSpec) -> TaskSpec:
    """TaskSpec from its message. Raises ValueError on a sampler this version does not know."""
    return TaskSpec(
        task_id=pb.task_id,
        prompt=pb.prompt,
        negative_prompt=pb.negative_prompt,
        width=pb.width,
        height=pb.height,
        num_inference_steps=pb.num_inference_steps,
        guidance_scale=pb.guidance_scale,
        seed=pb.seed,
        sampler=Sampler(pb.sampler),
        preview_every=pb.preview_every,
        skip_predictor=pb.skip_predictor,
        exact=pb.exact,
    )


def execution_to_pb(execution: Execution) -> stages_pb2.Execution:
    """Execution as its message."""
    after = execution.after
    return stages_pb2.Execution(
        place=execution.place,
        threads=execution.threads,
        after=stages_pb2.ItemRef(tick=after.tick, place=after.place) if after else None,
        patience_ms=execution.patience_ms,
        pace=execution.pace,
    )


def execution_from_pb(pb: stages_pb2.Execution) -> Execution:
    """Execution from its message."""
    after = ItemRef(pb.after.tick, pb.after.place) if pb.HasField("after") else None
    return Execution(pb.place, pb.threads, after, pb.patience_ms, pb.pace)


def unet_plan_to_pb(plan: UnetPlan) -> stages_pb2.UnetPlan:
    """UnetPlan as its message."""
    return stages_pb2.UnetPlan(
        leader_token=plan.leader_token,
        tick=plan.tick,
        items=[
            stages_pb2.UnetItem(
                entries=[
                    stages_pb2.UnetEntry(task_id=e.task_id, call=e.call, skip_cfg=e.skip_cfg) for e in item.entries
                ],
                execution=execution_to_pb(item.execution),
            )
            for item in plan.items
        ],
    )


def unet_plan_from_pb(pb: stages_pb2.UnetPlan) -> UnetPlan:
    """UnetPlan from its message."""
    items = tuple(
        UnetItem(
            tuple(UnetEntry(e.task_id, e.call, e.skip_cfg) for e in item.entries), execution_from_pb(item.execution)
        )
        for item in pb.items
    )
    return UnetPlan(pb.leader_token, pb.tick, items)


def decode_entry_to_pb(entry: DecodeEntry) -> stages_pb2.DecodeEntry:
    """DecodeEntry as its message."""
    return stages_pb2.DecodeEntry(
        task_id=entry.task_id,
        arena_address=entry.arena_address,
        slot=slot_ref_to_pb(entry.slot),
        width=entry.width,
        height=entry.height,
        image_format=images_pb2.ImageFormat.ValueType(entry.image_format),
        parameters_json=entry.parameters_json,
        chunks=entry.chunks,
        first_chunk=entry.first_chunk,
        end_chunk=entry.end_chunk,
        exact=entry.exact,
    )


def decode_entry_from_pb(pb: stages_pb2.DecodeEntry) -> DecodeEntry:
    """DecodeEntry from its message. Raises ValueError on an image format this version does not know."""
    return DecodeEntry(
        task_id=pb.task_id,
        arena_address=pb.arena_address,
        slot=slot_ref_from_pb(pb.slot),
        width=pb.width,
        height=pb.height,
        image_format=ImageFormat(pb.image_format),
        parameters_json=pb.parameters_json,
        chunks=pb.chunks,
        first_chunk=pb.first_chunk,
        end_chunk=pb.end_chunk,
        exact=pb.exact,
    )


def vae_plan_to_pb(plan: VaePlan) -> stages_pb2.VaePlan:
    """VaePlan as its message."""
    items = [
        stages_pb2.VaeItem(
            entries=[decode_entry_to_pb(e) for e in item.entries], execution=execution_to_pb(item.execution)
        )
        for item in plan.items
    ]
    return stages_pb2.VaePlan(leader_token=plan.leader_token, tick=plan.tick, items=items)


def vae_plan_from_pb(pb: stages_pb2.VaePlan) -> VaePlan:
    """VaePlan from its message."""
    items = tuple(
        VaeItem(tuple(decode_entry_from_pb(e) for e in item.entries), execution_from_pb(item.execution))
        for item in pb.items
    )
    return VaePlan(pb.leader_token, pb.tick, items)


def item_timing_to_pb(timing: ItemTiming) -> stages_pb2.ItemTiming:
    """ItemTiming as its message."""
    return stages_pb2.ItemTiming(
        start_unix_ns=timing.start_unix_ns,
        end_unix_ns=timing.end_unix_ns,
        rows=timing.rows,
        waited_ms=timing.waited_ms,
        halved=timing.halved,
        peak_bytes=timing.peak_bytes,
    )


def item_timing_from_pb(pb: stages_pb2.ItemTiming) -> ItemTiming:
    """ItemTiming from its message."""
    return ItemTiming(pb.start_unix_ns, pb.end_unix_ns, pb.rows, pb.waited_ms, pb.halved, pb.peak_bytes)


def skipped_entry_to_pb(entry: SkippedEntry) -> stages_pb2.SkippedEntry:
    """SkippedEntry as its message."""
    reason = stages_pb2.SkipReason.ValueType(entry.reason)
    return stages_pb2.SkippedEntry(task_id=entry.task_id, reason=reason, next_call=entry.next_call)


def skipped_entry_from_pb(pb: stages_pb2.SkippedEntry) -> SkippedEntry:
    """SkippedEntry from its message. A reason that only a newer worker knows says nothing: the task runs again."""
    try:
        reason = SkipReason(pb.reason)
    except ValueError as error:
        log.warning("an entry was skipped for an unknown reason", error=str(error), task_id=pb.task_id)
        reason = SkipReason.UNKNOWN_TASK
    return SkippedEntry(pb.task_id, reason, pb.next_call)


def unet_tick_done_to_pb(done: UnetTickDone) -> stages_pb2.UnetTickDone:
    """UnetTickDone as its message."""
    return stages_pb2.UnetTickDone(
        tick=done.tick,
        items=[item_timing_to_pb(i) for i in done.items],
        skipped=[skipped_entry_to_pb(s) for s in done.skipped],
        finished=[stages_pb2.FinishedTask(task_id=task, slot=slot_ref_to_pb(slot)) for task, slot in done.finished],
        drifts=[stages_pb2.GuidanceDrift(task_id=d.task_id, call=d.call, drift=d.drift) for d in done.drifts],
    )


def unet_tick_done_from_pb(pb: stages_pb2.UnetTickDone) -> UnetTickDone:
    """UnetTickDone from its message."""
    return UnetTickDone(
        tick=pb.tick,
        items=tuple(item_timing_from_pb(i) for i in pb.items),
        skipped=tuple(skipped_entry_from_pb(s) for s in pb.skipped),
        finished=tuple((f.task_id, slot_ref_from_pb(f.slot)) for f in pb.finished),
        drifts=tuple(GuidanceDrift(d.task_id, d.call, d.drift) for d in pb.drifts),
    )


def vae_tick_done_to_pb(done: VaeTickDone) -> stages_pb2.VaeTickDone:
    """VaeTickDone as its message."""
    return stages_pb2.VaeTickDone(
        tick=done.tick,
        items=[item_timing_to_pb(i) for i in done.items],
        skipped=[skipped_entry_to_pb(s) for s in done.skipped],
        decoded=done.decoded,
    )


def vae_tick_done_from_pb(pb: stages_pb2.VaeTickDone) -> VaeTickDone:
    """VaeTickDone from its message."""
    return VaeTickDone(
        tick=pb.tick,
        items=tuple(item_timing_from_pb(i) for i in pb.items),
        skipped=tuple(skipped_entry_from_pb(s) for s in pb.skipped),
        decoded=tuple(pb.decoded),
    )


def task_ready_to_pb(ready: TaskReady) -> stages_pb2.TaskReady:
    """TaskReady as its message."""
    return stages_pb2.TaskReady(
        task_id=ready.task_id, num_calls=ready.num_calls, encode_ms=ready.encode_ms, warnings=ready.warnings
    )


def task_ready_from_pb(pb: stages_pb2.TaskReady) -> TaskReady:
    """TaskReady from its message."""
    return TaskReady(pb.task_id, pb.num_calls, pb.encode_ms, tuple(pb.warnings))


def task_failed_to_pb(failed: TaskFailed) -> stages_pb2.TaskFailed:
    """TaskFailed as its message."""
    return stages_pb2.TaskFailed(task_id=failed.task_id, code=failed.code, message=failed.message)


def task_failed_from_pb(pb: stages_pb2.TaskFailed) -> TaskFailed:
    """TaskFailed from its message."""
    return TaskFailed(pb.task_id, pb.code, pb.message)


def preview_to_pb(preview: Preview) -> stages_pb2.Preview:
    """Preview as its message."""
    return stages_pb2.Preview(task_id=preview.task_id, call=preview.call, png=preview.png)


def preview_from_pb(pb: stages_pb2.Preview) -> Preview:
    """Preview from its message."""
    return Preview(pb.task_id, pb.call, pb.png)


def resident_task_to_pb(task: ResidentTask) -> stages_pb2.ResidentTask:
    """ResidentTask as its message."""
    return stages_pb2.ResidentTask(
        task_id=task.task_id,
        next_call=task.next_call,
        num_calls=task.num_calls,
        slot=slot_ref_to_pb(task.slot) if task.slot else None,
        skipped_calls=task.skipped_calls,
    )


def resident_task_from_pb(pb: stages_pb2.ResidentTask) -> ResidentTask:
    """ResidentTask from its message."""
    slot = slot_ref_from_pb(pb.slot) if pb.HasField("slot") else None
    return ResidentTask(pb.task_id, pb.next_call, pb.num_calls, slot, tuple(pb.skipped_calls))


def decoded_image_to_pb(image: DecodedImage) -> stages_pb2.DecodedImage:
    """DecodedImage as its message."""
    return stages_pb2.DecodedImage(
        task_id=image.task_id,
        format=images_pb2.ImageFormat.ValueType(image.format),
        width=image.width,
        height=image.height,
        data=image.data,
        flagged=image.flagged,
        decode_ms=image.decode_ms,
        encode_ms=image.encode_ms,
    )


def decoded_image_from_pb(pb: stages_pb2.DecodedImage) -> DecodedImage:
    """DecodedImage from its message."""
    return DecodedImage(
        task_id=pb.task_id,
        format=ImageFormat(pb.format),
        width=pb.width,
        height=pb.height,
        data=pb.data,
        flagged=pb.flagged,
        decode_ms=pb.decode_ms,
        encode_ms=pb.encode_ms,
    )
