"""One gateway for the tests of a process: before a real scheduler with simulated workers, or before a canned one."""

from collections.abc import Iterator

import pytest

from synerdiff.redis_process import RedisProcess
from tests.services.gateway.deployment import Door, running_gateway, simulated_schedulers
from tests.synerdiff_cli.fake_scheduler import FakeScheduler, Script
from tests.waiting import wait_until


@pytest.fixture(scope="session")
def scheduler_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real scheduler over a Redis of its own, whose workers draw grey pictures, 5 ms a step."""
    redis = RedisProcess(tmp_path_factory.mktemp("redis"))
    redis.start()
    with simulated_schedulers(redis.url) as address:
        yield address
    redis.stop()


@pytest.fixture(scope="session")
def door(scheduler_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A gateway before it, once its model is there."""
    alias = ("--model-aliases", "gpt-image-2.5-flare=simulated")
    with running_gateway(scheduler_address, tmp_path_factory.mktemp("gateway"), *alias) as door:
        wait_until(lambda: any(m["synerdiff"]["available"] for m in door.get("/v1/models").json()["data"]))
        yield door


@pytest.fixture(scope="session")
def _canned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, FakeScheduler]]:
    fake = FakeScheduler()
    fake.start()
    with running_gateway(fake.address, tmp_path_factory.mktemp("canned"), "--patience-s", "0.2") as door:
        yield door, fake
    fake.stop()


@pytest.fixture
def canned(_canned: tuple[Door, FakeScheduler]) -> tuple[Door, Script]:
    """A gateway before canned answers, and the script of these."""
    door, fake = _canned
    fake.script.__init__()  # type: ignore[misc]
    return door, fake.script
