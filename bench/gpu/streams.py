"""UNet steps and decodes on two streams of one process, against one after the other; of one process, without MPS."""

import contextlib
import statistics
import time
from typing import Any

import torch

from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.networks import Networks
from bench.gpu.timing import Call, median_ms, wait_for

_TIMES, _TINY_TIMES = 7, 2
WAY = "two streams"


def run(kit: Kit, name: ModelName) -> None:
    """Section 9: two cells of a model, UNet rows alone and a decode alone, and both side by side."""
    kit.wait_for_model(name)
    measure(kit, name, 2 if kit.tiny else 16, 1)


def measure(kit: Kit, name: ModelName, rows: int, images: int) -> None:
    """Record what steps of `rows` rows beside a decode of `images` take together and in turn."""
    networks = Networks.load(kit, name)
    seconds = 0.05 if kit.tiny else 0.4
    how, step = networks.captured(networks.step(rows))
    how_decode, decode = networks.captured(networks.decode(images))
    step_ms, decode_ms = median_ms(step, kit.device, seconds), median_ms(decode, kit.device, seconds)
    steps = max(1, round(decode_ms / step_ms))
    serial, together = [], []
    for _ in range(_TINY_TIMES if kit.tiny else _TIMES):
        serial.append(_in_turn(kit, step, steps, decode))
        together.append(_at_once(kit, step, steps, decode))
    serial_ms, together_ms = statistics.median(serial), statistics.median(together)
    kit.record(
        "overlap",
        model=name,
        way=WAY,
        how=f"step {how}, decode {how_decode}",
        rows=rows,
        steps=steps,
        decodes=images,
        step_ms=step_ms,
        decode_ms=decode_ms,
        serial_ms=round(serial_ms, 3),
        together_ms=round(together_ms, 3),
        gain=round(1 - together_ms / serial_ms, 4),
    )


def _in_turn(kit: Kit, step: Call, steps: int, decode: Call) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    decode()
    wait_for(kit.device)
    return (time.perf_counter() - began) * 1000


def _at_once(kit: Kit, step: Call, steps: int, decode: Call) -> float:
    """On a CPU in turn, too: there are no streams."""
    one, other = _stream(kit), _stream(kit)
    wait_for(kit.device)
    began = time.perf_counter()
    with other:
        decode()
    with one:
        for _ in range(steps):
            step()
    wait_for(kit.device)
    return (time.perf_counter() - began) * 1000


def _stream(kit: Kit) -> contextlib.AbstractContextManager[Any]:
    if kit.tiny:
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
