"""Fixtures for every test that needs a Redis: always a real one, durable as in production. And who runs beside whom."""

import gc
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import structlog
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from synerdiff.openmp import prepare_openmp
from synerdiff.redis_client import TROUBLE_LOG, connect
from synerdiff.redis_process import RedisProcess

prepare_openmp()
gc.disable()  # while tests are collected; see pytest_collection_finish
# Compiling takes a core for a minute: tests of it ask for it.
os.environ.setdefault("SYNERDIFF_COMPILE", "off")
os.environ.setdefault("SYNERDIFF_REHEARSE", "false")
# Examples take as long as the machine makes them take.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# The longest come first, so that the process that has them is no last one. Nor does another steal some of them from
# its end: each process that had tests of a compiled package would wait for that, while one core makes it.
FIRST = (
    *("tests/bench/gpu/test_kit.py", "tests/synerdiff/models/compiled/test_build.py"),
    "tests/synerdiff_cli/test_profile.py",
)
SECOND = ("tests/end_to_end",)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of several processes gets an even share, in order: the first begins with FIRST, the second with SECOND."""
    first, second = ([item for item in items if item.nodeid.startswith(names)] for names in (FIRST, SECOND))
    others = [item for item in items if not item.nodeid.startswith(FIRST + SECOND)]
    share = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    between = max(0, share - len(first))
    items[:] = [*first, *others[:between], *second, *others[between:]]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Several pytest processes share the cores: torch keeps to one in each, where tests do not say otherwise. And what
    was imported stays: no collection of garbage looks at it."""
    gc.freeze()
    gc.enable()
    torch = sys.modules.get("torch")
    if torch is not None and os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def loggers_of_one_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs in this process sets logging up for the streams of its test, which end with it: a logger of a
    module must not keep them."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **options: configure(**options | {"cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()
    TROUBLE_LOG.forget()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One Redis for the whole run. Tests that kill it use `own_redis`."""
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def redis(redis_server: RedisProcess) -> AsyncIterator[Redis]:
    """A client of the shared Redis, emptied first."""
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, to be killed and restarted (`kill9`, `restart`)."""
    server = RedisProcess(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family: not to be changed."""
    from tests.tiny_models import FamilyName, tiny_model  # torch is not for every test

    root = tmp_path_factory.mktemp("tiny_models")
    return {family: tiny_model(family, root / family) for family in get_args(FamilyName)}


@pytest.fixture
def copy_of(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes copies of them to spoil."""
    return lambda family: Path(shutil.copytree(tiny_models[family], tmp_path / family))
