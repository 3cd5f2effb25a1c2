"""Whether exact pictures are the same to the bit, and what they cost.

    python -m bench.exact [--requests 200] [--clients 16] [--dtype float32] [--rounds 3] [--no-price]

Sends mixed exact requests to deployments as `synerdiff up` starts them: one after the other; from many clients at once,
among as many others that are not exact; so again after a restart; and so again with two UNet workers. Every image file
has to be the one that came alone, byte by byte; of the requests that are not exact it counts how many are as well. Then
it measures, in turns, the throughput of requests that are alike but for being exact. Prints JSON.
"""

import argparse
import asyncio
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from PIL import Image

from bench.load import send_all
from bench.mixed_requests import MixedRequest, mixed_requests
from bench.serving import equal_requests
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import Drawn
from synerdiff.client.load.sending import Answer, ClosedLoop, send
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource
from synerdiff_cli.running import running

# Requests of a window of the price: enough that `images_per_s` leaves out its beginning and its end.
_WINDOW_TURNS = 4

Files = tuple[bytes, ...]


def in_a_crowd(requests: Sequence[MixedRequest]) -> list[MixedRequest]:
    """Every request exactly, and after it once more as any other: the k-th exact one is number 2k."""
    return [replace(request, exact=exact) for request in requests for exact in (True, False)]


def files_of(answer: Answer) -> Files:
    """The image files of an answer, none of one that failed."""
    return tuple(image.data for image in answer.pictures)


async def drawn(options: argparse.Namespace, requests: Sequence[MixedRequest], clients: int, unets: int) -> list[Files]:
    """The files of every request, in order, from a deployment of its own. Raises RuntimeError where one failed."""
    with tempfile.TemporaryDirectory() as folder:
        async with running(local_options(options, Path(folder), unets)) as deployed:
            window = await send_all(deployed.deployment.addresses[0], requests, clients)
    failed = [f"{answer.error}: {answer.message}" for answer in window.answers if answer.error]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, as {failed[0]}")
    return [files_of(answer) for answer in window.answers]


async def price(options: argparse.Namespace) -> dict[str, object]:
    """Images a second of equal requests, exact and not, in turns; and the medians' ratio."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running(local_options(options, Path(folder), 1)) as deployed,
            AsyncClient(deployed.deployment.addresses[0], patience_s=120.0) as client,
        ):
            for number in range(options.rounds + 1):
                for exact in rates:
                    mix = equal_requests(12, skip_cfg=False)
                    mix = replace(mix, like=replace(mix.like, exact=exact))
                    load = ClosedLoop(Drawn(mix, number, _WINDOW_TURNS * options.clients), options.clients)
                    rate = (await send(client, load)).images_per_s
                    if number:  # the first round warms up
                        rates[exact].append(rate)
    ratios = [exact / other for exact, other in zip(rates[True], rates[False], strict=True)]
    return {
        "images_per_s": {"exact": rounded(rates[True]), "other": rounded(rates[False])},
        "exact_over_other": {"median": round(statistics.median(ratios), 3), "all": rounded(ratios)},
    }


def local_options(options: argparse.Namespace, folder: Path, unets: int) -> LocalOptions:
    """A deployment of the bundled model, compiled where that is asked for."""
    models = (ModelSource("emoji", BUNDLED_MODEL),)
    return LocalOptions(folder, models, dtype=options.dtype, unet_workers=unets, compile=options.compile)


def rounded(values: Sequence[float]) -> list[float]:
    """For people."""
    return [round(value, 3) for value in values]


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """All of it, once."""
    requests = mixed_requests(options.requests, options.seed)
    alone = await drawn(options, [replace(request, exact=True) for request in requests], clients=1, unets=1)
    others: dict[str, int] = {}
    equal: dict[str, int] = {}
    for name, unets in (("in a crowd", 1), ("after a restart", 1), ("on two UNet workers", 2)):
        files = await drawn(options, in_a_crowd(requests), options.clients, unets)
        equal[name] = sum(map(_same, alone, files[::2]))
        others[name] = sum(map(_same_pixels, alone, files[1::2]))
    found: dict[str, object] = {"requests": len(requests), "equal_to_the_bit": equal, "of_the_others": others}
    return found | (await price(options) if options.price else {})


def _same(one: Files, other: Files) -> bool:
    return bool(one) and one == other


def _same_pixels(one: Files, other: Files) -> bool:
    """The metadata of the files tells which of them is exact."""
    return len(one) == len(other) and all(_pixels(a) == _pixels(b) for a, b in zip(one, other, strict=True))


def _pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


def main() -> int:
    """Parse the command line, measure, and say by the exit status whether every exact picture is the one alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", choices=("off", "auto", "wait"), default="off", help="of those that are not exact")
    parser.add_argument("--rounds", type=int, default=3, help="of the price")
    parser.add_argument("--no-price", dest="price", action="store_false")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    print(json.dumps(result, indent=2))
    equal = result["equal_to_the_bit"]
    return 0 if isinstance(equal, dict) and set(equal.values()) == {options.requests} else 1


if __name__ == "__main__":
    sys.exit(main())
