"""One deployment for all tests here: what one kills is there again for the next."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.exact import Files, files_of
from bench.load import send_all
from bench.mixed_requests import mixed_requests
from bench.status import slots_used
from synerdiff.client import AsyncClient
from tests.end_to_end.command import Up, processes, running_up
from tests.tiny_models import EMOJI_MODEL
from tests.waiting import HANG_S

PATIENCE_S = 90.0
ABANDONMENT_S = 8  # longer than a scheduler that was killed takes to come back, and its clients to find it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a deployment runs in one process; and deaths and patience have their times."""
    for item in items:
        if "up" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)


# Drawn exactly, by one test alone and in a crowd, by another while workers die.
EXACT = [replace(request, exact=True) for request in mixed_requests(8, seed=11, steps=(3, 6))]


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`synerdiff up` with two schedulers; after the last test it must go with Ctrl-C and leave nothing behind."""
    home = tmp_path_factory.mktemp("up")
    model = Path(shutil.copytree(EMOJI_MODEL, home / "model"))
    settings = {"SYNERDIFF_ABANDONMENT_S": str(ABANDONMENT_S), "SYNERDIFF_WEIGHTS_WAIT_S": "1"}
    with running_up(home, schedulers=2, model=f"emoji={model}", **settings) as deployment:
        yield deployment
        deployment.process.send_signal(signal.SIGINT)
        assert deployment.process.wait(timeout=HANG_S) == 130
        assert processes(home) == {}
        assert {path.name for path in deployment.logs.iterdir()} == {
            *("redis.log", "scheduler-0.log", "scheduler-1.log", "unet-emoji-0.log", "vae-emoji-0.log", "gateway.log")
        }


@pytest.fixture
async def client(up: Up) -> AsyncIterator[AsyncClient]:
    """Of the first scheduler, and patient: workers take a while to come back."""
    async with AsyncClient(up.addresses[0], patience_s=PATIENCE_S) as client:
        yield client


@pytest.fixture
async def all_slots_end_free(up: Up) -> AsyncIterator[None]:
    yield
    assert await slots_used(up.addresses) == 0


@pytest.fixture(scope="package")
def alone(up: Up) -> list[Files]:
    """The files of EXACT, drawn one after the other."""
    files = [files_of(answer) for answer in asyncio.run(send_all(up.addresses[0], EXACT, clients=1)).answers]
    assert all(files)
    return files
