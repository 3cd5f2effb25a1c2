"""A peer's process with the bundled model: each request gets the picture of its own seed, whoever is drawn beside."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.peers.measuring import peer
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.load.arrivals import Arrival
from synerdiff.client.load.requests import LoadRequest
from synerdiff.client.load.sending import OpenLoop, send
from synerdiff.errors import InvalidRequest
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.reference import reference_image

STEPS, GUIDANCE_SCALE = 3, 5.0
REQUESTS = [LoadRequest(f"a {what}", 40 + k, STEPS, GUIDANCE_SCALE) for k, what in enumerate(("car", "dog", "rocket"))]


@pytest.mark.timeout(180)
async def test_batched_requests_get_the_pictures_of_their_own_seeds(tmp_path: Path) -> None:
    options = {"model": BUNDLED_MODEL, "sizes": "1,4", "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "threads": 1}
    async with peer("eager", options, tmp_path, tmp_path / "log") as running:
        assert running.about["best_size"] in (1, 4)
        assert {len(sizes) for sizes in running.about["sweep"]["seconds"].values()} == {2}
        batches = OpenLoop(tuple(Arrival(0.0, request) for request in REQUESTS))
        for address in (running.about["batched"], running.about["one"]):
            async with AsyncClient(address) as client:
                window = await send(client, batches, keep_pictures=True)
                assert [answer.error for answer in window.answers] == [""] * len(REQUESTS)
                for request, answer in zip(REQUESTS, window.answers, strict=True):
                    served = np.asarray(answer.pictures[0].pil).astype(int)
                    assert np.abs(served - alone(request)).max() <= 1
        async with AsyncClient(running.about["one"]) as client:
            with pytest.raises(InvalidRequest, match="sampler"):
                await client.generate("a car", sampler=Sampler.EULER)
        window = await running.loop(4, 2, prompts=["a car"], num_inference_steps=2, guidance_scale=GUIDANCE_SCALE)
        assert [answer.images for answer in window.answers] == [4, 4]
        assert min(answer.latency_s for answer in window.answers) > 0
        (pid,) = running.system.computing
    assert not psutil.pid_exists(pid)


def alone(request: LoadRequest) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """The picture that diffusers makes of a request by itself."""
    picture = reference_image(
        BUNDLED_MODEL,
        prompt=request.prompt,
        seed=request.seed,
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        sampler=Sampler.DDIM,
        width=128,
        height=128,
    )
    return np.asarray(picture).astype(np.int64)
