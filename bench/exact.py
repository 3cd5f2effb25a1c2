"""Whether exact pictures are the same to the bit, and their cost.

    python -m bench.exact [--requests 200] [--clients 16] [--dtype float32] [--rounds 3] [--no-price]

Sends mixed exact requests to deployments as `synerdiff up` starts them: one after the other; from many clients at once,
among as many others that are not exact; so again after a restart; and so again with two UNet workers. Every image file
has to be the one that came alone, byte by byte; of the requests that are not exact it counts how many are as well. Then
it measures, in turns, the throughput of requests that are alike but for being exact. Prints JSON.
"""

import contextlib
import io
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from PIL import Image

from bench.command import run
from bench.mixed_requests import MixedRequest, mixed_requests
from bench.serving import deployed, equal_requests
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import Drawn
from synerdiff.client.load.sending import Answer, ClosedLoop, send

# Requests of a window of the price: enough that `images_per_s` leaves out its beginning and its end.
_WINDOW_TURNS = 4

Files = tuple[bytes, ...]


def in_a_crowd(requests: Sequence[MixedRequest]) -> list[MixedRequest]:
    """Every request as an exact one, and after it once more as an ordinary one: the k-th exact one is number 2k."""
    return [replace(request, exact=exact) for request in requests for exact in (True, False)]


def files_of(answer: Answer) -> Files:
    """The image files of an answer, none of one that failed."""
    return tuple(image.data for image in answer.pictures)


@contextlib.asynccontextmanager
async def emoji(dtype: str, compile: str, unets: int = 1) -> AsyncIterator[AsyncClient]:
    """A client of a deployment of the bundled model, compiled where that is asked for."""
    starting = deployed({"compile": compile}, dtype=dtype, idle_profile=False, unet_workers=unets)
    async with starting as system, AsyncClient(system.deployment.addresses[0], patience_s=120) as client:
        yield client


async def drawn(client: AsyncClient, requests: Sequence[MixedRequest], clients: int) -> list[Files]:
    """The files of every request, in order. Raises RuntimeError where one failed."""
    window = await send(client, ClosedLoop(requests, clients), keep_pictures=True)
    failed = [f"{answer.error}: {answer.message}" for answer in window.answers if answer.error]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, as {failed[0]}")
    return [files_of(answer) for answer in window.answers]


async def prices(client: AsyncClient, clients: int, rounds: int) -> dict[str, object]:
    """Images a second of equal requests, exact and not, in turns; and the medians' ratio."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for exact, measured in rates.items():
            mix = equal_requests(12, skip_cfg=False)
            mix = replace(mix, like=replace(mix.like, exact=exact))
            load = ClosedLoop(Drawn(mix, number, _WINDOW_TURNS * clients), clients)
            rate = (await send(client, load)).images_per_s
            if number:  # the first round warms up
                measured.append(rate)
    ratios = [exact / other for exact, other in zip(rates[True], rates[False], strict=True)]
    return {
        "images_per_s": {"exact": rounded(rates[True]), "other": rounded(rates[False])},
        "exact_over_other": {"median": round(statistics.median(ratios), 3), "all": rounded(ratios)},
    }


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


async def measure(
    requests: int = 200,
    clients: int = 16,
    seed: int = 1,
    dtype: str = "float32",
    compile: Annotated[str, typer.Option(help="off, auto or wait: of those that are not exact.")] = "off",
    rounds: Annotated[int, typer.Option(help="Of the price.")] = 3,
    price: bool = True,
) -> dict[str, object]:
    mixed = mixed_requests(requests, seed)
    others: dict[str, int] = {}
    equal: dict[str, int] = {}
    async with emoji(dtype, compile) as client:
        alone = await drawn(client, [replace(request, exact=True) for request in mixed], clients=1)
    for name, unets in (("in a crowd", 1), ("after a restart", 1), ("on two UNet workers", 2)):
        async with emoji(dtype, compile, unets) as client:
            files = await drawn(client, in_a_crowd(mixed), clients)
        equal[name] = sum(map(_same, alone, files[::2]))
        others[name] = sum(map(_same_pixels, alone, files[1::2]))
    found: dict[str, object] = {"requests": len(mixed), "equal_to_the_bit": equal, "of_the_others": others}
    if price:
        async with emoji(dtype, compile) as client:
            found |= await prices(client, clients, rounds)
    return found


def _same(one: Files, other: Files) -> bool:
    return bool(one) and one == other


def _same_pixels(one: Files, other: Files) -> bool:
    """The metadata of the files tells which of them is exact."""
    return len(one) == len(other) and all(_pixels(a) == _pixels(b) for a, b in zip(one, other, strict=True))


def _pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


if __name__ == "__main__":
    run(measure, well=lambda found: set(found["equal_to_the_bit"].values()) == {found["requests"]})
