"""One deployment for all tests here: what one kills is there again for the next."""

import signal
from collections.abc import Iterator

import pytest

from tests.end_to_end.command import Up, processes, running_up
from tests.waiting import HANG_S

ABANDONMENT_S = 8  # longer than a scheduler that was killed takes to come back, and its clients to find it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole deployments take all cores."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`synerdiff up` with two schedulers; after the last test it must go with Ctrl-C and leave nothing behind."""
    home = tmp_path_factory.mktemp("up")
    with running_up(home, schedulers=2, SYNERDIFF_ABANDONMENT_S=str(ABANDONMENT_S)) as deployment:
        yield deployment
        deployment.process.send_signal(signal.SIGINT)
        assert deployment.process.wait(timeout=HANG_S) == 130
        assert processes(home) == {}
        assert {path.name for path in deployment.logs.iterdir()} == {
            *("redis.log", "scheduler-0.log", "scheduler-1.log", "unet-emoji-0.log", "vae-emoji-0.log")
        }
