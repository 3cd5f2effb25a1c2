"""How long a deployment takes to its first picture and to compiled steps: eager, with nothing compiled yet, and again.

    python -m bench.compiled_start [--rounds 3] [--dtype float32|bfloat16]

Each round starts the whole deployment with the bundled model three times: with `compile=off`; with `compile=auto` and
an empty cache; and with the cache that the second start has filled. Prints JSON: seconds from the start to ready (every
process says so), from there to the first picture of 20 steps, and from there to UNet and VAE worker running compiled.
No request is sent after the first picture, so that the compilation in the background has the cores.
"""

import tempfile
import time
from typing import Any

from bench.command import machine, run, say
from bench.serving import deployed, equal_requests
from bench.status import until
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import Drawn
from synerdiff.client.load.sending import ClosedLoop, send


async def start(compile_mode: str, cache: str, dtype: str) -> dict[str, float]:
    began = time.monotonic()
    async with deployed({"compile": compile_mode, "compile_cache": cache}, dtype=dtype) as system:
        ready = time.monotonic()
        address = system.deployment.addresses[0]
        seconds = {"ready": ready - began}
        async with AsyncClient(address) as client:
            await send(client, ClosedLoop(Drawn(equal_requests(), 1, 1), 1))
        seconds["first_picture_after_ready"] = time.monotonic() - ready
        if compile_mode != "off":
            await until(address, lambda status: all(w.execution == "compiled" for w in status.workers))
            seconds["compiled_after_ready"] = time.monotonic() - ready
            async with AsyncClient(address) as client:
                window = await send(client, ClosedLoop(Drawn(equal_requests(), 2, 3), 1))
            seconds["picture_then"] = min(answer.latency_s for answer in window.served)
    return seconds


async def measure(rounds: int = 3, dtype: str = "float32") -> dict[str, Any]:
    found: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            ways = {"eager": "off", "empty cache": "auto", "warm cache": "auto"}
            found.append({name: await start(mode, cache, dtype) for name, mode in ways.items()})
        say(str(found[-1]))
    return {"machine": machine(), "dtype": dtype, "rounds": found}


if __name__ == "__main__":
    run(measure)
