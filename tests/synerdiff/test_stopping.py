"""Being told to stop at any moment: before the event loop runs, while something loads, while it serves."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from synerdiff.rpc import LIVENESS, READINESS, STARTUP, ServiceHost, open_channel, serving
from synerdiff.stopping import StoppedWhileLoading, cancel_and_wait, load_unless_stopped
from tests.waiting import HANG_S


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a load waits for; open at the end in any case."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_probes_are_answered_while_something_loads(gate: threading.Event) -> None:
    host = ServiceHost()
    await host.start_health("127.0.0.1:0")
    loading = asyncio.create_task(load_unless_stopped(lambda: gate.wait(HANG_S), asyncio.Event()))
    async with open_channel(host.health_address) as probe:
        assert [await serving(probe, name) for name in (LIVENESS, STARTUP, READINESS)] == [True, False, False]
        gate.set()
        assert await loading
        await host.start("127.0.0.1:0")
        await host.set_ready(True)
        assert [await serving(probe, name) for name in (LIVENESS, STARTUP, READINESS)] == [True, True, True]
    await host.drain(0)


async def test_what_goes_wrong_with_a_load_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await load_unless_stopped(lambda: 1 / 0, asyncio.Event())


async def test_a_load_is_not_waited_for_once_told_to_stop(gate: threading.Event) -> None:
    stop = asyncio.Event()
    loading = asyncio.create_task(load_unless_stopped(lambda: gate.wait(HANG_S), stop))
    await asyncio.sleep(0)
    stop.set()
    with pytest.raises(StoppedWhileLoading):
        await asyncio.wait_for(loading, HANG_S)


STOPPED = {
    "before the loop runs": "print(flush=True); time.sleep(600)",
    "while something loads": """
        def load():
            print(flush=True)
            time.sleep(600)

        async def main():
            await load_unless_stopped(load, stop_signal())

        try:
            asyncio.run(main())
        except StoppedWhileLoading:
            leave_now()
    """,
}


@pytest.mark.parametrize("script", STOPPED.values(), ids=STOPPED)
def test_sigterm_ends_the_process_at_once_and_well(script: str) -> None:
    start = "import asyncio, textwrap, time; from synerdiff.stopping import *; exit_at_stop_signal(); "
    process = subprocess.Popen(
        [sys.executable, "-c", start + f"exec(textwrap.dedent({script!r}))"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()


async def stubborn(deaf_times: int) -> None:
    for _ in range(deaf_times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    await asyncio.sleep(60)


async def test_lost_cancellations_are_asked_for_again() -> None:
    tasks = [asyncio.create_task(stubborn(deaf_times)) for deaf_times in (0, 1, 3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(*tasks), HANG_S)
    assert all(task.cancelled() for task in tasks)


async def test_ended_tasks_are_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0, result=7))
    await task
    await cancel_and_wait(task)
    await cancel_and_wait()
    assert task.result() == 7
