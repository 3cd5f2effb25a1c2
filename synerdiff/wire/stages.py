"""stages.proto <-> synerdiff.plans and tasks: a pair of functions per type, which raise as `codec` says."""

from synerdiff import plans
from synerdiff.latents.description import ArenaDescription
from synerdiff.requests import TaskSpec
from synerdiff.v1 import stages_pb2
from synerdiff.wire.codec import codec

slot_ref_to_pb, slot_ref_from_pb = codec(plans.SlotRef, stages_pb2.SlotRef)
task_spec_to_pb, task_spec_from_pb = codec(TaskSpec, stages_pb2.TaskSpec)
unet_plan_to_pb, unet_plan_from_pb = codec(plans.UnetPlan, stages_pb2.UnetPlan)
vae_plan_to_pb, vae_plan_from_pb = codec(plans.VaePlan, stages_pb2.VaePlan)
unet_tick_done_to_pb, unet_tick_done_from_pb = codec(plans.UnetTickDone, stages_pb2.UnetTickDone)
vae_tick_done_to_pb, vae_tick_done_from_pb = codec(plans.VaeTickDone, stages_pb2.VaeTickDone)
task_ready_to_pb, task_ready_from_pb = codec(plans.TaskReady, stages_pb2.TaskReady)
task_failed_to_pb, task_failed_from_pb = codec(plans.TaskFailed, stages_pb2.TaskFailed)
preview_to_pb, preview_from_pb = codec(plans.Preview, stages_pb2.Preview)
resident_task_to_pb, resident_task_from_pb = codec(plans.ResidentTask, stages_pb2.ResidentTask)
decoded_image_to_pb, decoded_image_from_pb = codec(plans.DecodedImage, stages_pb2.DecodedImage)


arena_description_to_pb, arena_description_from_pb = codec(ArenaDescription, stages_pb2.ArenaDescription)
