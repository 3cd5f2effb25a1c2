"""Clients that send garbage or are many: what they cost."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.services.gateway.deployment import PATH, Door, asking, running_gateway
from tests.waiting import HANG_S

ENDLESS = 2000  # steps of 5 ms
GARBAGE = 1000


@pytest.fixture
async def http(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=door.url, timeout=HANG_S) as client:
        yield client


async def test_garbage_is_refused_and_leaves_memory_as_it_was(door: Door, http: httpx2.AsyncClient) -> None:
    draw = random.Random(1)
    for _ in range(200):
        await http.post(PATH, **garbage(draw))
    before = door.rss_bytes()
    statuses = []
    for _ in range(GARBAGE // 20):
        answers = await asyncio.gather(*(http.post(PATH, **garbage(draw)) for _ in range(20)))
        statuses += [answer.status_code for answer in answers]
        assert all(answer.json()["error"]["message"] for answer in answers)
    assert len(statuses) == GARBAGE
    assert set(statuses) <= {400, 401, 404, 413}
    # A kilobyte kept of each would be a megabyte; what allocators round up to is several.
    assert door.rss_bytes() - before < 16e6


def garbage(draw: random.Random) -> dict[str, Any]:
    """A request that is none."""
    junk = bytes(draw.randrange(256) for _ in range(draw.randrange(400)))
    bodies: list[object] = [
        junk,
        b"[" * draw.randrange(1, 100_000),
        b'{"prompt": ' + b"9" * draw.randrange(1, 9000) + b"}",
        b"x" * draw.randrange(300_000, 400_000),
        json.dumps({"prompt": draw.choice([None, 3, [], "\ud800", "\0"])}),
        json.dumps({"prompt": "x", draw.choice(["a", "\ud800", "n" * 5000]): 1}),
        json.dumps({"prompt": "x", "n": draw.choice([0, 11, -1, 1e300, "1", True])}),
        json.dumps({"prompt": "x", "seed": draw.choice([-1, 2**63, 2**4000, 0.5])}),
        json.dumps({"prompt": "x", "skip_cfg": draw.choice([[-1], [2**40], "no", [0]])}),
        json.dumps({"prompt": "x", "model": draw.choice(["\ud800", "../..", "x" * 10_000])}),
    ]
    headers = {"content-type": draw.choice(["application/json", "application/json; charset=latin-1"])}
    return {"content": draw.choice(bodies), "headers": headers}


async def test_two_hundred_clients_stream_at_once(door: Door, http: httpx2.AsyncClient) -> None:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=door.url, timeout=HANG_S, limits=limits) as many:
        body = {"prompt": "x", "stream": True, "partial_images": 1, "size": "64x64", "num_inference_steps": 10}
        answers = await asyncio.gather(*(many.post(PATH, json=body) for _ in range(200)))
    assert {answer.status_code for answer in answers} == {200}
    assert all("image_generation.completed" in answer.text for answer in answers)


async def test_a_bound_on_open_requests_answers_429(scheduler_address: str, tmp_path: Path) -> None:
    flags = ("--max-open-requests", "1", "--drain-grace-s", "1")  # what is asked for would take ten seconds
    with running_gateway(scheduler_address, tmp_path, *flags) as small:
        _, writer = await asking(small, {"prompt": "x", "num_inference_steps": ENDLESS})
        async with httpx2.AsyncClient(base_url=small.url, timeout=HANG_S) as http, asyncio.timeout(HANG_S):
            while (answer := await http.get("/v1/models")).status_code == 200:
                await asyncio.sleep(0.02)
        writer.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
    assert answer.headers["retry-after"] == "1"
