"""Memory too small for a full batch (injected): it is halved, everything is made, later batches stay under it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from services.scheduler.engine.engine import Engine
from services.scheduler.engine.events import JobArrived, ProfileKnown
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.jobs import JobRecord
from synerdiff.models.family import Conditioning, UnetSide, VaeSide
from synerdiff.plans import UnetTickDone, VaeTickDone
from synerdiff.profiles import ItemCaps
from tests.parity import unet_side, vae_side
from tests.services.one_domain import DOMAIN, one_domain
from tests.services.scheduler.simulated import straight_line_profile
from tests.values import a_job, a_request

MODEL, SIDE, IMAGES = "tiny", 64, 5
KEY = BatchKey(MODEL, SIDE, SIDE)
MOST_ROWS, MOST_DECODES = 3, 1


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every batch that was tried, in order; larger ones than there is memory for fail."""
    tried: list[tuple[str, int]] = []
    predict, decode = UnetSide.predict, VaeSide.decode

    def predict_if_it_fits(side: UnetSide, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        tried.append(("unet", len(latents)))
        if len(latents) > MOST_ROWS:
            raise torch.OutOfMemoryError("CUDA out of memory. Injected.")
        return predict(side, latents, timesteps, conditioning)

    def decode_if_it_fits(side: VaeSide, latents: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        tried.append(("vae", len(latents)))
        if len(latents) > MOST_DECODES:
            raise torch.OutOfMemoryError("CUDA out of memory. Injected.")
        return decode(side, latents)

    monkeypatch.setattr(UnetSide, "predict", predict_if_it_fits)
    monkeypatch.setattr(VaeSide, "decode", decode_if_it_fits)
    return tried


def job(job_id: str, steps: int) -> JobRecord:
    asked = {"num_inference_steps": steps, "guidance_scale": 5.0, "num_images": IMAGES, "preview_every": 0}
    return a_job(job_id, a_request(model=MODEL, prompt=job_id, request_id=job_id, width=SIDE, height=SIDE, **asked))


@pytest.mark.parametrize(("policy", "profiled"), [("continuous", False), ("vae-first", True)])
async def test_later_items_stay_under_what_memory_did_not_suffice_for(
    tiny_path: Path, tried: list[tuple[str, int]], policy: str, profiled: bool
) -> None:
    engine = Engine(ConfiguredPolicy(POLICIES[policy], PolicyBounds(8, 8)), leader_token=1)
    if profiled:
        profile = straight_line_profile(caps=ItemCaps(IMAGES, IMAGES))
        engine.on(ProfileKnown(DOMAIN, KEY, profile), 0)
    with capture_logs() as logs:
        async with one_domain(engine, unet_side(tiny_path), vae_side(tiny_path), MODEL, slots=IMAGES) as domain:
            domain.on(JobArrived(job("first", steps=6)))
            await domain.until_ended(1)
            assert domain.finished == {"first"}, domain.failed_jobs
            before = len(tried)
            domain.on(JobArrived(job("second", steps=2)))
            await domain.until_ended(2)
            assert domain.finished == {"first", "second"}, domain.failed_jobs
    assert domain.failed == [], "no task is to blame for what its company took"
    assert ("unet", 2 * IMAGES) in tried, "memory never ran out"
    assert max(rows for kind, rows in tried[before:] if kind == "unet") <= MOST_ROWS, "nothing was learned"
    assert max(images for kind, images in tried if kind == "vae") > MOST_DECODES, "memory never ran out"
    assert max(images for kind, images in tried[before:] if kind == "vae") <= MOST_DECODES, "nothing was learned"
    assert engine.holdings.memory.of(DOMAIN, KEY) == ItemCaps(MOST_ROWS // 2, MOST_DECODES)
    if profiled:
        assert engine.holdings.profiles[DOMAIN, KEY] == dataclasses.replace(profile, caps=ItemCaps(1, 1))
    halved = {type(done): item.halved for done in domain.reports for item in done.items if item.halved}
    assert halved.keys() == {UnetTickDone, VaeTickDone}
    told = [log for log in logs if log["event"].startswith("memory did not suffice")]
    assert {log["worker_id"] for log in told} == {"unet", "vae"}
    assert min(log["most_tasks"] for log in told if "most_tasks" in log) == MOST_ROWS // 2
