"""A canned scheduler, and the command run against it in an empty folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.synerdiff_cli.fake_scheduler import FakeScheduler, Script


@pytest.fixture
def scheduler() -> Iterator[FakeScheduler]:
    fake = FakeScheduler()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def script(scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """The fake's script; commands find the fake by SYNERDIFF_ADDRESS and run in an empty folder."""
    monkeypatch.setenv("SYNERDIFF_ADDRESS", scheduler.address)
    monkeypatch.chdir(tmp_path)
    return scheduler.script
