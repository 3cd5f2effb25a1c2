"""A scheduler process that cannot start as it is told to."""

import asyncio
import sys
from pathlib import Path

from synerdiff.settings import EXIT_BAD_SETTINGS
from tests.waiting import HANG_S


async def the_line_it_ends_with(*flags: str) -> bytes:
    """The one line that a scheduler with these flags says before it ends."""
    scheduler = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.scheduler", "--listen", "127.0.0.1:0", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[3],
    )
    said, _ = await asyncio.wait_for(scheduler.communicate(), HANG_S)
    assert scheduler.returncode == EXIT_BAD_SETTINGS, said
    assert said.count(b"\n") == 1, said
    return said
