"""The UnetStage servicer: messages in, the worker's methods, messages out."""

import grpc

from services.unet_worker.worker import UnetWorker
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.plans import TaskFailed
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import resident_task_to_pb, task_spec_from_pb, unet_plan_from_pb
from synerdiff.worker.leader import Leader
from synerdiff.worker.run_stream import RunServicer, checked_plan, unexpected

UNET_STAGE = "synerdiff.v1.UnetStage"
LATENTS_ARENA = "synerdiff.v1.LatentsArena"


def add_services(host: ServiceHost, worker: UnetWorker) -> None:
    """Add the worker and its arena to a host that has not started."""
    host.add(UNET_STAGE, stages_pb2_grpc.add_UnetStageServicer_to_server, _UnetServicer(worker))
    arena = LatentsArenaServicer(worker.arena)
    host.add(LATENTS_ARENA, stages_pb2_grpc.add_LatentsArenaServicer_to_server, arena)


class _UnetServicer(RunServicer[UnetWorker], stages_pb2_grpc.UnetStageServicer):
    report_type = stages_pb2.UnetReport

    def attached(self, leader: Leader) -> stages_pb2.UnetAttached:
        return stages_pb2.UnetAttached(
            worker_id=self._worker.worker_id,
            slots=self._worker.slots,
            arena_address=self._worker.address,
            resident=[resident_task_to_pb(resident) for resident in leader.residents],
            draining=self._worker.draining,
        )

    def carry_out(self, command: stages_pb2.UnetCommand, leader: Leader) -> None:
        match command.WhichOneof("command"):
            case "plan":
                self._worker.run_plan(checked_plan(command.plan, unet_plan_from_pb), leader)
            case "admit":
                self._admit(command.admit, leader)
            case "cancel":
                self._worker.drop(command.cancel.task_ids, "cancelled")
            case "release":
                self._worker.drop(command.release.task_ids, "released")
            case _:
                raise unexpected(command)

    def _admit(self, pb: stages_pb2.TaskSpec, leader: Leader) -> None:
        try:
            spec = task_spec_from_pb(pb)
        except ValueError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            self._worker.tell(leader, TaskFailed(pb.task_id, code, f"sampler: {error}"))
        else:
            self._worker.admit(spec)
