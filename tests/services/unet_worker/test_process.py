import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.settings import UnetWorkerSettings
from services.unet_worker.stage import UnetStage
from synerdiff.models.compiled.components import no_request
from synerdiff.models.device import open_device
from synerdiff.models.device.opening import dtype_from_name, dtype_name
from synerdiff.models.digest import model_digest, weights_digest
from synerdiff.models.layout import read_layout
from synerdiff.models.loading import load_unet_side
from synerdiff.redis_process import RedisProcess
from synerdiff.registry import WorkerRegistry
from synerdiff.rpc import open_channel, serving
from synerdiff.settings import EXIT_BAD_SETTINGS, load
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages
from synerdiff.worker.process import run
from tests.services.unet_worker.leader import Leader, leading
from tests.services.worker_processes import announced, worker_process
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.tiny_models import edit_json, tiny_model
from tests.values import spec
from tests.waiting import HANG_S


async def test_a_process_announces_itself_and_drains_on_sigterm(
    redis: Redis, redis_server: RedisProcess, tmp_path: Path
) -> None:
    model = tiny_model("sd1", tmp_path / "tiny")
    digest, weights = model_digest(read_layout(model)), weights_digest(load_unet_side(model, dtype_from_name("auto")))
    registry, command = WorkerRegistry(redis), ("services.unet_worker", "--model", str(model))
    async with worker_process(*command, "--redis-url", redis_server.url, "--pool", "test") as process:
        record = await announced(registry)
        assert (record.kind, record.model_card.name, record.pid) == ("unet", "tiny", process.pid)
        assert record.device == open_device("cpu").name
        assert (record.dtype, record.threads) == (dtype_name(dtype_from_name("auto")), 1)
        assert (record.model_digest, record.weights) == (digest, weights)
        async with open_channel(record.address) as channel, leading(channel) as leader:
            assert await serving(channel, "synerdiff.v1.UnetStage")
            assert leader.attached.arena_address == record.address
            await assert_outlives(model, channel, leader)
            await leader.admit(spec("a/0"))
            await leader.run([("a/0", 0)])

            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(HANG_S):
                while [record.draining for record in await registry.workers("test")] != [True]:
                    await asyncio.sleep(0.02)
            assert not await serving(channel)
            assert not (await leader.run([("a/0", 1)])).finished
        # A leader that comes now finds the worker, and what it holds.
        async with open_channel(record.address) as channel, leading(channel, token=2) as leader:
            assert [task.task_id for task in leader.attached.resident] == ["a/0"]
            assert (await leader.run([("a/0", 2)])).finished
            await leader.release("a/0")
            assert await asyncio.wait_for(process.wait(), HANG_S) == 0
    assert [card.name for card in await registry.cards()] == ["tiny"]


async def assert_outlives(model: Path, channel: grpc.aio.Channel, leader: Leader) -> None:
    """What a process serves outlives the files that it was read from."""
    files = list(model.glob("*/*.safetensors"))  # noqa: ASYNC240
    before = await drawn(channel, leader, "before/0")
    for path in files:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(path.stat().st_size - 4096))
    assert await drawn(channel, leader, "overwritten/0") == before
    for path in files:
        os.truncate(path, 0)
    assert await drawn(channel, leader, "cut/0") == before


async def drawn(channel: grpc.aio.Channel, leader: Leader, task_id: str) -> bytes:
    """The finished latents of a task, as VAE workers read them."""
    await leader.admit(spec(task_id, num_inference_steps=2))
    done = await leader.run([(task_id, 0)], [(task_id, 1)])
    ((_, slot),) = done.finished
    request = stages_pb2.ReadLatentsRequest(slots=[stages.slot_ref_to_pb(slot)])
    reply = await stages_pb2_grpc.LatentsArenaStub(channel).Read(request)
    data: bytes = reply.slots[0].data
    assert data
    await leader.release(task_id)
    return data


def test_no_request_pays_for_a_capture(tmp_path: Path) -> None:
    """On a fake of the device: all that a full worker may be asked for is captured before it serves, and kept."""
    gpu, model = FakeGpu(), tiny_model("sd1", tmp_path / "tiny")
    stage = UnetStage(load(UnetWorkerSettings, ["--model", str(model), "--slots", "3", "--dtype", "float32"]))
    stage.load_model(gpu)
    stage.make_ready(no_request, rehearse=False)
    side, unet = stage.side, stage.compiled
    assert unet.graphed.captures == len((6, 4, 2, 1))
    gpu.asked.clear()
    specs = [spec("a/0"), spec("b/0"), spec("c/0", guidance_scale=1.0)]
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs)]
    denoiser = Denoiser(side, unet)
    for count in (3, 2, 1):
        denoiser.step(tasks[:count])
    denoiser.step(tasks[2:])
    assert gpu.asked.count("replay") == 4
    assert "capture" not in gpu.asked


async def test_a_worker_without_the_mps_daemon_that_it_requires_ends_before_it_looks_for_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with capture_logs() as logs:
        stage = UnetStage(load(UnetWorkerSettings, ["--device", "cuda", "--require-mps", "--compile", "off"]))
        assert await run(stage) == 1
    [told] = [log for log in logs if log["log_level"] == "critical"]
    assert f"no MPS control daemon at {tmp_path}" in told["reason"]


async def test_a_scheduler_that_cannot_be_served_ends_the_process_with_its_name(tmp_path: Path) -> None:
    model = tiny_model("sd1", tmp_path / "tiny")
    edit_json(model / "model_index.json", scheduler=["diffusers", "LMSDiscreteScheduler"])
    with capture_logs() as logs:
        stage = UnetStage(load(UnetWorkerSettings, ["--model", str(model), "--compile", "off"]))
        assert await run(stage) == EXIT_BAD_SETTINGS
    refusal = logs[-1]["reason"]
    assert "its own scheduler cannot be served: LMSDiscreteScheduler needs scipy, which is not installed" in refusal
