"""The VaeStage servicer: one leader's commands in, reports and image files out."""

from collections.abc import AsyncIterator

import grpc

from services.vae_worker.worker import VaeWorker
from synerdiff.plans import VaePlan
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import decoded_image_to_pb, vae_plan_from_pb
from synerdiff.worker.leader import Leader
from synerdiff.worker.run_stream import RunServicer, checked_plan, unexpected

VAE_STAGE = "synerdiff.v1.VaeStage"


def add_services(host: ServiceHost, worker: VaeWorker) -> None:
    """Add the worker to a host that has not started."""
    host.add(VAE_STAGE, stages_pb2_grpc.add_VaeStageServicer_to_server, _VaeServicer(worker))


class _VaeServicer(RunServicer[VaeWorker], stages_pb2_grpc.VaeStageServicer):
    report_type = stages_pb2.VaeReport

    async def Images(
        self, request: stages_pb2.ImagesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[stages_pb2.DecodedImage]:
        """Image files that are not stored yet, then those that come: see stages.proto."""
        if request.leader_token < self._worker.guard.token:
            raise self._worker.guard.stale(request.leader_token)
        with self._worker.failure.guarding("the sender of images"):
            async for image in self._worker.outbox.follow(request.leader_token):
                yield decoded_image_to_pb(image)

    def attached(self, leader: Leader) -> stages_pb2.VaeAttached:
        return stages_pb2.VaeAttached(worker_id=self._worker.worker_id, draining=self._worker.draining)

    def carry_out(self, command: stages_pb2.VaeCommand, leader: Leader) -> None:
        match command.WhichOneof("command"):
            case "plan":
                self._worker.run_plan(checked_plan(command.plan, _plan), leader)
            case "cancel":
                self._worker.loop.cancel(command.cancel.task_ids)
            case "stored":
                self._worker.outbox.forget(command.stored.task_ids)
            case _:
                raise unexpected(command)


def _plan(pb: stages_pb2.VaePlan) -> VaePlan:
    plan = vae_plan_from_pb(pb)
    for entry in (entry for item in plan.items for entry in item.entries):
        if not 0 <= entry.first_chunk < entry.end_chunk <= entry.chunks:
            chunks = f"chunks {entry.first_chunk} to {entry.end_chunk} of {entry.chunks}"
            raise ValueError(f"{entry.task_id}: {chunks} is not a part of a decode")
    return plan
