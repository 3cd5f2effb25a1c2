"""`synerdiff trace`: what is fetched, where it goes, and what its picture shows."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import Result

from synerdiff.errors import Unavailable
from synerdiff_cli.trace import NothingToDraw, picture
from tests.synerdiff_cli.fake_scheduler import Script, synerdiff

LANES = [
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "gpu-0"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "vae v"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "unet u"}},
]


def slice_of(kind: str, start_s: float, end_s: float, **args: float) -> dict[str, object]:
    tid = 2 if kind == "vae" else 1
    times = {"ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6}
    return {"ph": "X", "cat": kind, "name": kind, "pid": 1, "tid": tid, "args": args} | times


def threshold(at_s: float, value: float, pid: int = 1) -> dict[str, object]:
    return {"ph": "C", "name": "threshold", "pid": pid, "ts": at_s * 1e6, "args": {"threshold": value}}


TRACE = [
    *LANES,
    slice_of("unet", 0, 1, rows=8, skips=0),
    slice_of("wait", 1, 1.5),
    slice_of("unet", 1.5, 3, rows=4, skips=2),
    slice_of("vae", 1.5, 2, decodes=1.5),
    threshold(0, 0.5),
    threshold(0.9, 0.7),
    threshold(2, 0.9),
    threshold(2.5, 0.1, pid=7),
]


@pytest.fixture
def traced(script: Script) -> Script:
    script.trace_json = json.dumps({"traceEvents": TRACE}).encode()
    return script


def trace(*arguments: str) -> Result:
    return synerdiff("trace", *arguments)


def test_the_trace_is_written_as_it_came_and_its_file_named(traced: Script) -> None:
    result = trace()
    assert (result.exit_code, result.stdout) == (0, "synerdiff-trace.json\n")
    assert Path("synerdiff-trace.json").read_bytes() == traced.trace_json
    assert trace("-o", "here.json", "--domain", "gpu-0").stdout == "here.json\n"
    assert Path("here.json").read_bytes() == traced.trace_json
    assert traced.trace_domains == ["", "gpu-0"]


def test_a_scheduler_that_does_not_lead_says_whom_to_ask(traced: Script) -> None:
    traced.error = Unavailable("this scheduler does not lead pool 'default'; ask its leader")
    result = trace()
    assert result.exit_code == 3
    assert result.stderr == "error: this scheduler does not lead pool 'default'; ask its leader\n"
    assert list(Path().iterdir()) == []


def test_nothing_is_drawn_of_a_system_that_has_not_run(traced: Script) -> None:
    traced.trace_json = json.dumps({"traceEvents": LANES}).encode()
    result = trace("--plot", "trace.png")
    assert result.exit_code == 1
    assert "nothing to draw" in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_picture_is_drawn(traced: Script) -> None:
    result = trace("--plot", "trace.png")
    assert (result.exit_code, result.stdout) == (0, "trace.png\n")
    assert Path("trace.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("synerdiff-trace.json").exists()


def test_the_picture_shows_the_last_seconds_with_a_lane_per_worker() -> None:
    shown = picture(TRACE, seconds=1.8)
    assert (shown.start_us, shown.seconds) == (1.2e6, 1.8)
    assert list(shown.lanes.values()) == ["unet u", "vae v"]
    assert [item["cat"] for item in shown.items] == ["wait", "unet", "vae"]
    assert shown.counters == {"threshold": [(0.0, 0.7), (0.8, 0.9)]}


def test_a_short_trace_is_shown_whole() -> None:
    assert picture(TRACE, seconds=60).seconds == 3.0
    with pytest.raises(NothingToDraw):
        picture(LANES, seconds=1)
