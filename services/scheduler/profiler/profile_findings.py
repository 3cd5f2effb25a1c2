"""What a measured profile says: of whom it is, how large items should be, and what pays on the device. Pure."""

import math
from dataclasses import replace

from synerdiff.profiles import ItemCaps, Profile, ProfileSubject
from synerdiff.registry import WorkerRecord

USEFUL_GAIN = 0.05  # of time saved by running side by side, below which it is not worth the company
_LEVEL = 0.05  # throughput within this of the best is as good
_LONGEST_ITEM = 2.0  # an item with decodes takes at most this many times one without: steps must not wait for more


def subject_of(unet: WorkerRecord, vae: WorkerRecord, width: int, height: int) -> ProfileSubject:
    """What a profile of these two workers at a picture size (pixels) is of."""
    scale = max(1, vae.model_card.size_multiple)
    return ProfileSubject(
        model=unet.model_card.name,
        model_digest=_both(unet.model_digest, vae.model_digest),
        device=_both(unet.device, vae.device),
        dtype=_both(unet.dtype, vae.dtype),
        latent_shape=(unet.model_card.latent_channels, height // scale, width // scale),
        shares=_shares(unet, vae),
    )


def _shares(unet: WorkerRecord, vae: WorkerRecord) -> str:
    """How the two share a device: CPU threads, percent of a GPU's threads under CUDA MPS, or neither set."""
    if unet.threads or vae.threads:
        return f"{unet.threads} + {vae.threads} threads"
    if unet.mps_thread_percent or vae.mps_thread_percent:
        return f"MPS {unet.mps_thread_percent or 'none'}:{vae.mps_thread_percent or 'none'}"
    return "as the device shares"


def _both(of_unet: str, of_vae: str) -> str:
    return of_unet if of_unet == of_vae else f"{of_unet} + {of_vae}"


def with_findings(profile: Profile, slots: int) -> Profile:
    """The profile with caps, and `beside` among its mechanisms, as its cells say.

    Before, its caps are how far it was measured. `slots`: of the UNet worker, more tasks than which cannot run.
    """
    tasks = min(max(1, math.ceil(profile.knee_rows() / 2)), slots)
    caps = ItemCaps(tasks, decodes_at_once(profile, 2 * tasks))
    beside = best_gain(profile, caps) > USEFUL_GAIN
    return replace(profile, caps=caps, mechanisms=replace(profile.mechanisms, beside=beside))


def decodes_at_once(profile: Profile, rows: int) -> int:
    """Decodes per item past which no more are made per ms, or an item of `rows` gets longer than about two without."""
    best, most = 0.0, 1
    for decodes in range(1, profile.caps.vae + 1):
        beside = profile.choice(rows, decodes)
        ms = beside.ms if beside else profile.latency_ms(0, decodes)
        if decodes > 1 and ms > _LONGEST_ITEM * profile.latency_ms(rows, 0):
            break
        if decodes / ms > best * (1 + _LEVEL):
            best, most = decodes / ms, decodes
    return most


def best_gain(profile: Profile, caps: ItemCaps) -> float:
    """The largest overlap gain of a measured item within caps; of any where none is within; -1 where none was."""
    beside = {(cell.rows, cell.decodes) for cell in profile.cells if cell.rows and cell.decodes}
    within = {at for at in beside if at[0] <= 2 * caps.unet and at[1] <= caps.vae}
    return max((profile.overlap_gain(*at) for at in within or beside), default=-1.0)
