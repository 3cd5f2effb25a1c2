"""Times of calls on a device, the work of each waited for."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]

_RUNS_BEFORE_CAPTURE = 3


def wait_for(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(call: Call, device: str, seconds: float = 0.6) -> float:
    """The median ms of a call, over five calls at least and `seconds` otherwise; two before that do not count."""
    for _ in range(2):
        call()
    wait_for(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 500):
        began = time.perf_counter()
        call()
        wait_for(device)
        taken.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(taken), 4)


def graphed(call: Call) -> Call:
    """A CUDA graph of a call, on a stream and workspaces of its own, as a call. Raises what a capture fails with."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(_RUNS_BEFORE_CAPTURE):
            call()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=aside):
            kept = call()
    finally:
        torch.cuda.set_stream(here)  # a capture that fails to begin leaves its own

    def replay() -> Any:
        graph.replay()
        return kept

    return replay
