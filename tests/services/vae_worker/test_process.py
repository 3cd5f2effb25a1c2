"""`python -m services.vae_worker` as it is started in production: announced while it serves, drained on SIGTERM."""

import asyncio
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.vae_worker import settings as settings_module
from services.vae_worker.service import VAE_STAGE
from services.vae_worker.settings import VaeWorkerSettings
from services.vae_worker.stage import VaeStage
from synerdiff.latents.arena import create_arena
from synerdiff.models.device import open_device
from synerdiff.models.device.opening import dtype_from_name, dtype_name
from synerdiff.models.digest import model_digest
from synerdiff.models.layout import read_layout
from synerdiff.redis_process import RedisProcess
from synerdiff.registry import WorkerRegistry
from synerdiff.rpc import open_channel, serving
from synerdiff.settings import EXIT_BAD_SETTINGS, load
from synerdiff.worker import process as process_module
from synerdiff.worker.process import run
from tests.services.vae_worker.stage import MODEL, Leader, Stage
from tests.services.worker_processes import announced, served_arena, worker_process
from tests.waiting import HANG_S


async def test_from_start_to_drained(redis: Redis, redis_server: RedisProcess) -> None:
    registry, flags = WorkerRegistry(redis), ("--redis-url", redis_server.url, "--pool", "test", "--model-name", "m")
    async with (
        served_arena(arena := create_arena(2, 4 * 4 * 4 * 4, "float32")) as arena_address,
        worker_process("services.vae_worker", *flags) as process,
    ):
        record = await announced(registry)
        assert (record.kind, record.model_card.name, record.pid) == ("vae", "m", process.pid)
        assert record.device == open_device("cpu").name
        assert (record.dtype, record.threads) == (dtype_name(dtype_from_name("auto")), 1)
        assert record.model_digest == model_digest(read_layout(MODEL))
        assert record.domain.startswith("cpu:")
        async with open_channel(record.address) as channel:
            assert await serving(channel, VAE_STAGE)
            leader = Leader(channel, 1)
            await leader.attach()
            stage = Stage(None, record.address, arena, arena_address)  # type: ignore[arg-type]
            await leader.plan(1, stage.entries("a/0"))
            assert (await leader.done()).decoded == ("a/0",)
            process.send_signal(signal.SIGTERM)
            assert set(await leader.images(1)) == {"a/0"}
            async with asyncio.timeout(HANG_S):
                while not (await announced(registry)).draining:
                    await asyncio.sleep(0.02)
            assert not await serving(channel, VAE_STAGE)
            assert process.returncode is None, "it went before its image was stored"
            await leader.stored("a/0")
            assert await asyncio.wait_for(process.wait(), HANG_S) == 0


async def test_an_announcer_that_dies_ends_the_process(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "keep_announced", dying)
    flags = ("--redis-url", redis_server.url, "--compile", "off", "--no-rehearse", "--threads", "1")
    with capture_logs() as logs:
        assert await asyncio.wait_for(run(VaeStage(load(VaeWorkerSettings, [*flags]))), HANG_S) == 1
    [told] = [log for log in logs if log["log_level"] == "critical"]
    assert told["event"].startswith("the announcer died")


async def dying(*_: object) -> None:
    raise KeyError("ours")


async def test_a_bad_setting_is_named_at_once() -> None:
    async with worker_process("services.vae_worker", "--encode-threads", "65") as process:
        _, errors = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 2
    assert "--encode-threads" in errors.decode()


async def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    with capture_logs() as logs:
        stage = VaeStage(load(VaeWorkerSettings, ["--model", str(tmp_path / "nothing")]))
        assert await run(stage) == EXIT_BAD_SETTINGS
    assert str(tmp_path) in logs[-1]["reason"]


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (8, 4), (48, 24), (256, 64)])
def test_image_files_are_encoded_by_as_many_threads_as_there_are_cores_for(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    assert load(VaeWorkerSettings, []).image_encoders() == threads
    assert load(VaeWorkerSettings, ["--encode-threads", "3"]).image_encoders() == 3
