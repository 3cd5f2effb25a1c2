"""`synerdiff bench`: what is sent to whom, and what is told of it."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from synerdiff.client.load.requests import Drawn, LoadRequest, Mix
from synerdiff.client.load.sending import ClosedLoop, Load, OpenLoop, Window
from synerdiff.errors import InvalidRequest, QueueFull
from synerdiff_cli.bench_run import Listener, Plan, Shape, Target, run_bench
from synerdiff_cli.server import Server
from tests.synerdiff_cli.fake_scheduler import FakeScheduler, synerdiff
from tests.synerdiff_cli.test_trace import TRACE

MIX = Mix(("a cat", "a dog"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[FakeScheduler, FakeScheduler]]:
    """Two servers that answer at once; commands run in an empty folder."""
    pair = (FakeScheduler(), FakeScheduler())
    for fake in pair:
        fake.start()
        fake.script.succeed()
        fake.script.trace_json = b'{"traceEvents": []}'
    monkeypatch.chdir(tmp_path)
    yield pair
    for fake in pair:
        fake.stop()


def bench(*arguments: str) -> Result:
    return synerdiff("bench", *arguments)


def test_a_closed_loop_is_sent_and_told_of(fakes: tuple[FakeScheduler, FakeScheduler]) -> None:
    fake = fakes[0]
    options = "--concurrency 3 --requests 10 --warm-up 2 --steps 4 --guidance-scale 2 --sampler euler --no-skip-cfg"
    result = bench("--address", fake.address, *options.split(), "--width", "64", "--model", "emoji")
    assert result.exit_code == 0, result.stderr
    assert len(fake.script.requests) == 12
    last = fake.script.requests[-1]
    assert (last.num_inference_steps, last.guidance_scale, last.width, last.model) == (4, 2.0, 64, "emoji")
    assert last.prompt.startswith("a ")
    heading, row = result.stdout.splitlines()
    assert heading.split()[:4] == ["server", "images/s", "mean", "s"]
    assert row.split()[0] == fake.address
    assert row.split()[-1] == "0"
    assert f"{fake.address}, round 1 of 1: 10 images" in result.stderr


def test_several_servers_get_the_same_requests_and_ratios_are_told(fakes: tuple[FakeScheduler, FakeScheduler]) -> None:
    a, b = fakes
    addresses = ("--address", f"ours={a.address}", "--address", f"theirs={b.address}")
    result = bench(*addresses, "--burst", "4", "--rounds", "2", "--json", "out.json", "--seed", "5")
    assert result.exit_code == 0, result.stderr
    seeds = [sorted(request.seed for request in fake.script.requests) for fake in fakes]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 8 + 2 * 4
    assert "over ours" in result.stdout
    written = json.loads(Path("out.json").read_text())
    assert list(written["servers"]) == ["ours", "theirs"]
    assert [len(one["answers"]) for one in written["servers"]["theirs"]["rounds"]] == [4, 4]
    assert len(written["ratios"]["theirs"]["mean_s"]["per_round"]) == 2
    assert (written["load"]["burst"], written["seed"]) == (4, 5)


async def test_servers_take_turns_and_never_work_at_once(fakes: tuple[FakeScheduler, FakeScheduler]) -> None:
    course: list[str] = []

    class Hears(Listener):
        def begins(self, target: Target, number: int, load: Load) -> None:
            course.append(f"{target.name}{number} begins")

        def ended(self, target: Target, number: int, window: Window) -> None:
            course.append(f"{target.name}{number} ends")

    targets = tuple(Target(name, Server(fake.address)) for name, fake in zip("ab", fakes, strict=True))
    plan = Plan(targets, 2, 0, MIX, lambda number: ClosedLoop(Drawn(MIX, number, 5), 2), traced=False)
    measured = await run_bench(plan, Hears())
    expected = [f"{name} {what}" for name in ("a0", "b0", "b1", "a1") for what in ("begins", "ends")]
    assert course == expected
    assert {name: len(windows) for name, windows in measured.items()} == {"a": 2, "b": 2}


def test_errors_are_counted_and_make_the_exit_code(fakes: tuple[FakeScheduler, FakeScheduler]) -> None:
    fake = fakes[0]
    fake.script.error = QueueFull("the queue is full", 1.0)
    result = bench("--address", fake.address, "--requests", "5", "--json", "out.json")
    assert result.exit_code == 1
    assert f"{fake.address}, failed: 5 RESOURCE_EXHAUSTED" in result.stderr
    assert result.stdout.splitlines()[1].split()[-1] == "5"
    summary = json.loads(Path("out.json").read_text())["servers"][fake.address]["summary"]
    assert summary["errors"] == {"RESOURCE_EXHAUSTED": 5}
    assert summary["mean_s"] is None


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_picture_is_drawn_with_and_without_a_trace(fakes: tuple[FakeScheduler, FakeScheduler]) -> None:
    a, b = fakes
    a.script.trace_json = json.dumps({"traceEvents": _in_the_future(TRACE)}).encode()
    addresses = ("--address", a.address, "--address", b.address)
    result = bench(*addresses, "--rate", "200", "--requests", "20", "--plot", "out.png", "--json", "out.json")
    assert result.exit_code == 0, result.stderr
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    servers = json.loads(Path("out.json").read_text())["servers"]
    assert [rows for _, rows in servers[a.address]["rounds"][0]["unet_rows"]] == [8, 4]
    assert [value for _, value in servers[a.address]["rounds"][0]["thresholds"]] == [0.5, 0.7, 0.9]
    assert servers[b.address]["rounds"][0]["unet_rows"] == []


def _in_the_future(events: list[dict[str, object]]) -> list[dict[str, object]]:
    """The trace as if it had been made after whatever is sent here; only its kind is of interest."""
    moved = [event | {"ts": float(str(event["ts"])) + 4e15} if "ts" in event else event for event in events]
    return [
        event | {"args": dict(event["args"]) | {"ran_rows": event["args"]["rows"]}}  # type: ignore[call-overload, index]
        if event.get("cat") == "unet"
        else event
        for event in moved
        if event.get("pid") == 1
    ]


def test_shapes_of_load(tmp_path: Path) -> None:
    default = Shape().load(MIX, 1)
    assert isinstance(default, ClosedLoop)
    assert (len(list(default.requests)), default.concurrency, default.seconds) == (100, 8, None)
    timed = Shape(concurrency=2, seconds=3).load(MIX, 1)
    assert isinstance(timed, ClosedLoop)
    assert timed.requests == Drawn(MIX, 1, None)
    bursts = Shape(burst=2, every_s=2, seconds=5).load(MIX, 1)
    assert isinstance(bursts, OpenLoop)
    assert [arrival.at_s for arrival in bursts.arrivals] == [0, 0, 2, 2, 4, 4]
    (tmp_path / "times").write_text("1\n")
    recorded = Shape(times=tmp_path / "times").load(MIX, 1)
    assert isinstance(recorded, OpenLoop)
    assert recorded.arrivals[0].request == replace_seed(MIX, recorded.arrivals[0].request)
    with pytest.raises(InvalidRequest, match="requests"):
        Shape(times=tmp_path / "times", requests=3)


def replace_seed(mix: Mix, request: LoadRequest) -> LoadRequest:
    """A request of the mix with this one's prompt and seed."""
    assert request.prompt in mix.prompts
    return LoadRequest(request.prompt, request.seed)
