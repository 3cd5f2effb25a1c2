"""The supervisor with small stand-in children: restarts, giving up, and taking everything down with it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from synerdiff_cli.supervisor import ChildGaveUp, ChildSpec, ChildState, RestartPolicy, Supervisor, log_tail
from tests.waiting import HANG_S, until

# On a busy machine, too, whatever dies in a test dies quickly.
FAST = RestartPolicy(quick_s=600, first_delay_s=0.01, longest_delay_s=0.05, probe_interval_s=0.02, stop_grace_s=1.0)


def stand_in(
    tmp_path: Path, body: str, name: str = "child", stage: int = 0, probe: Callable[[], Awaitable[bool]] | None = None
) -> ChildSpec:
    """A child that runs `body` with `marker`, the file whose being there means that it is ready."""
    marker = tmp_path / f"{name}.ready"

    async def there() -> bool:
        return marker.exists()

    code = "import os, pathlib, signal, sys, time\nmarker = pathlib.Path(sys.argv[1])\n" + textwrap.dedent(body)
    command = (sys.executable, "-S", "-c", code, str(marker))
    return ChildSpec(name, command, tmp_path / f"{name}.log", probe or there, stage=stage)


SERVES = "print('up', flush=True); marker.touch(); time.sleep(600)"


async def given_up(spec: ChildSpec) -> str:
    """What is said of a child that cannot be kept alive."""
    async with Supervisor([spec], policy=FAST) as supervisor:
        with pytest.raises(ChildGaveUp) as caught:
            await supervisor.start()
    return str(caught.value)


async def test_a_child_runs_inside_the_block_and_is_gone_after_it(tmp_path: Path) -> None:
    async with Supervisor([stand_in(tmp_path, SERVES)], policy=FAST) as supervisor:
        await supervisor.start()
        pid = supervisor.pids()["child"]
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert log_tail(tmp_path / "child.log") == ["up"]


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    changes: list[ChildState] = []
    spec = stand_in(tmp_path, SERVES)
    async with Supervisor([spec], policy=FAST, on_change=lambda _, state: changes.append(state)) as supervisor:
        await supervisor.start()
        first = supervisor.pids()["child"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids().get("child", first) != first)
        await until(lambda: changes[-1] is ChildState.READY)
    assert " ".join(change.value for change in changes) == "starting ready restarting starting ready stopped"


async def test_five_quick_deaths_give_up_with_the_end_of_the_log(tmp_path: Path) -> None:
    spec = stand_in(tmp_path, "print('no such weights', flush=True); os._exit(3)")
    message = await given_up(spec)
    assert message.startswith("child died 5 times in a row, the last time with exit status 3")
    assert str(tmp_path / "child.log") in message
    assert message.endswith("| no such weights")
    assert log_tail(tmp_path / "child.log") == ["no such weights"] * 5


async def test_deaths_after_a_good_life_are_not_counted_together(tmp_path: Path) -> None:
    policy = replace(FAST, quick_deaths=2, quick_s=0.05)
    changes: list[ChildState] = []
    async with Supervisor(
        [stand_in(tmp_path, SERVES)], policy=policy, on_change=lambda _, state: changes.append(state)
    ) as supervisor:

        async def live_and_die() -> None:
            for _ in range(4):
                await until(lambda: changes[-1:] == [ChildState.READY])
                changes.clear()
                await asyncio.sleep(2 * policy.quick_s)
                os.kill(supervisor.pids()["child"], signal.SIGKILL)

        await supervisor.start()
        await supervisor.guard(live_and_die())


async def test_bad_settings_are_not_tried_again(tmp_path: Path) -> None:
    spec = stand_in(tmp_path, "print('--dtype: no such thing', flush=True); os._exit(2)")
    assert "at its start with exit status 2" in await given_up(spec)
    assert log_tail(spec.log) == ["--dtype: no such thing"]


async def test_a_group_that_cannot_start_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    reason = "cannot load a model from /models/odd: unet/config.json is missing"
    line = json.dumps({"event": "cannot start", "reason": reason})
    refused = replace(stand_in(tmp_path, f"print({line!r}, flush=True); os._exit(2)", "unet-odd"), group="odd")
    partner = replace(stand_in(tmp_path, SERVES, "vae-odd"), group="odd")
    good = replace(stand_in(tmp_path, SERVES, "unet-good"), group="good")
    shared = stand_in(tmp_path, SERVES, "scheduler")
    told: list[tuple[str, str]] = []
    async with Supervisor(
        [refused, partner, good, shared], policy=FAST, on_refused=lambda *what: told.append(what)
    ) as supervisor:
        await supervisor.start()
        await until(lambda: set(supervisor.pids()) == {"unet-good", "scheduler"})
        assert (told, supervisor.left_out) == ([("odd", reason)], {"odd"})


async def test_the_last_group_that_cannot_start_ends_everything(tmp_path: Path) -> None:
    specs = [replace(stand_in(tmp_path, "os._exit(2)", name), group=name) for name in ("one", "other")]
    async with Supervisor([*specs, stand_in(tmp_path, SERVES, "scheduler")], policy=FAST) as supervisor:
        with pytest.raises(ChildGaveUp, match="at its start with exit status 2"):
            await supervisor.start()
        assert len(supervisor.left_out) == 1


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    spec = ChildSpec("redis", ("/nonexistent/redis-server",), tmp_path / "redis.log", never)
    assert "cannot run /nonexistent/redis-server: No such file" in await given_up(spec)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); marker.touch(); time.sleep(600)"
    async with Supervisor([stand_in(tmp_path, stubborn)], policy=FAST) as supervisor:
        await supervisor.start()
        pid = supervisor.pids()["child"]
        began = time.monotonic()
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - began >= FAST.stop_grace_s


async def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    changes: list[tuple[str, ChildState]] = []
    slow = stand_in(tmp_path, "time.sleep(0.3); " + SERVES, "redis", stage=0)
    quick = stand_in(tmp_path, SERVES, "scheduler", stage=1)
    async with Supervisor([quick, slow], policy=FAST, on_change=lambda *change: changes.append(change)) as supervisor:
        await supervisor.start()
    assert changes.index(("redis", ChildState.READY)) < changes.index(("scheduler", ChildState.STARTING))
    assert changes[-2:] == [("scheduler", ChildState.STOPPED), ("redis", ChildState.STOPPED)]


async def test_a_child_that_is_not_awaited_comes_after_the_others_and_keeps_none_waiting(tmp_path: Path) -> None:
    first = stand_in(tmp_path, SERVES, "first")
    late = replace(stand_in(tmp_path, "time.sleep(600)", "late", stage=1), awaited=False)
    async with Supervisor([first, late], policy=FAST) as supervisor:
        await asyncio.wait_for(supervisor.start(), HANG_S)
        await until(lambda: set(supervisor.pids()) == {"first", "late"})
        waiting = asyncio.create_task(supervisor.until_ready("late"))
        await asyncio.sleep(0)
        assert not waiting.done()
        (tmp_path / "late.ready").touch()
        await asyncio.wait_for(waiting, HANG_S)


async def test_guarded_work_ends_when_a_child_is_given_up(tmp_path: Path) -> None:
    spec = stand_in(tmp_path, "marker.touch(); time.sleep(0.05); os._exit(1)")
    async with Supervisor([spec], policy=FAST) as supervisor:
        with pytest.raises(ChildGaveUp):
            await supervisor.guard(_start_and_wait(supervisor))


async def _start_and_wait(supervisor: Supervisor) -> None:
    await supervisor.start()
    await asyncio.sleep(600)


SUPERVISING = """
import asyncio, pathlib, sys
from synerdiff_cli.console import run
from tests.synerdiff_cli.test_supervisor import FAST, SERVES, Supervisor, stand_in

async def main():
    specs = [stand_in(pathlib.Path(sys.argv[1]), SERVES, name) for name in ("one", "two")]
    async with Supervisor(specs, policy=FAST) as supervisor:
        await supervisor.start()
        print(*supervisor.pids().values(), flush=True)
        await asyncio.sleep(600)

run(main())
"""


def start_supervising(tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process of its own that supervises two children; it and the children's process ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISING, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_take_everything_down(tmp_path: Path, number: signal.Signals) -> None:
    process, pids = start_supervising(tmp_path)
    assert len(pids) == 2
    process.send_signal(number)
    _, stderr = await asyncio.to_thread(process.communicate, timeout=HANG_S)
    assert process.returncode == 128 + number
    assert stderr == ""
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
async def test_no_orphans_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    process, pids = start_supervising(tmp_path)
    assert len(pids) == 2
    process.kill()
    await asyncio.to_thread(process.communicate, timeout=HANG_S)
    await until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    """Whether a process runs: one that is dead but not yet reaped by init does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
