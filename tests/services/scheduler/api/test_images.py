"""Image files of jobs, over real gRPC and Redis: however heavy, and those that are not there."""

import grpc
import pytest

from synerdiff.client import AsyncClient
from synerdiff.jobs import JobState
from synerdiff.rpc import MIB, open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.harness import Leader, Scheduler, png


async def test_a_job_answers_whatever_its_images_weigh(
    client: AsyncClient, leader: Leader, scheduler: Scheduler
) -> None:
    padding_bytes = 9 * MIB
    request = {"request_id": "heavy", "num_images": 8, "seed": 1}
    handle = await client.submit("pizza", **request)  # type: ignore[arg-type]
    await leader.complete(await leader.take(), padding_bytes)
    assert (await client.submit("pizza", **request)).job_id == handle.job_id  # type: ignore[arg-type]
    for job in (await handle.status(), await handle.cancel()):
        assert job.state is JobState.FINISHED
        assert [len(image.data) - padding_bytes for image in job.images] == [len(png(1 + i)) for i in range(8)]
        assert [image.pil.getpixel((0, 0)) for image in job.images] == [(1 + i, 1, 2) for i in range(8)]
    default_limit_bytes = 4 * MIB  # of a client that was told nothing
    async with open_channel(scheduler.address, max_message_bytes=default_limit_bytes) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        repeated = images_pb2.GenerateRequest(request_id="heavy", prompt="pizza", num_images=8, seed=1)
        job_id = handle.job_id
        for call in (
            stub.GetJob(images_pb2.GetJobRequest(job_id=job_id, max_image_bytes=1)),
            stub.CancelJob(images_pb2.CancelJobRequest(job_id=job_id, max_image_bytes=1)),
            stub.Submit(repeated),
        ):
            images = (await call).images
            assert [(image.index, image.seed, image.width, image.data) for image in images] == [
                (i, 1 + i, 8, b"") for i in range(8)
            ]
            assert all(image.size_bytes > padding_bytes for image in images)
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        images = (await stub.GetJob(images_pb2.GetJobRequest(job_id=job_id))).images
        assert [bool(image.data) for image in images] == [True] * 6 + [False] * 2, "as many as 60 MiB hold"


async def test_an_image_that_is_not_there_is_not_found(client: AsyncClient, scheduler: Scheduler) -> None:
    job_id = (await client.submit("pizza")).job_id
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        for asked, message in ((job_id, "index: the job has no image 3"), ("unknown", "job_id: 'unknown' is unknown")):
            with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                await stub.GetImage(images_pb2.GetImageRequest(job_id=asked, index=3))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
