"""Profiles and the records of their workers, for tests that measure nothing."""

from dataclasses import replace
from typing import Any

from services.scheduler.profiles.measuring.rounds import Probe, extent_for
from synerdiff.host import boot_id
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject
from synerdiff.registry import WorkerKind, WorkerRecord
from tests.values import a_worker

SUBJECT = ProfileSubject("emoji", "d1", "EPYC", "float32", (4, 32, 32), "2 + 2 threads")


def record(kind: WorkerKind, **changes: Any) -> WorkerRecord:
    """A worker on a CPU of two cores."""
    here = a_worker(kind, boot_id=boot_id(), device="EPYC", dtype="float32", model_digest="d1", threads=2)
    return replace(here, **changes)


def two_cores(probe: Probe) -> float:
    """Ms of an item where two threads are worth 1.6 to the UNet and 1.4 to the VAE, and neighbours cost a tenth."""
    setting = probe.setting
    unet = (4 + 6.0 * probe.rows) / (1.6 if setting.unet_threads == 2 else 1) if probe.rows else 0.0
    vae = 20.0 * probe.decodes / (1.4 if setting.vae_threads == 2 else 1)
    return max(unet, vae) * (1.1 if probe.rows and probe.decodes else 1)


def profile(subject: ProfileSubject = SUBJECT, max_rows: int = 16, max_decodes: int = 6) -> Profile:
    """What measuring `two_cores` gives."""
    extent = extent_for(max_rows, max_decodes, [1], 2, 2, 2)
    rows, decodes = sorted({1, 2, max_rows // 2, max_rows} - {0}), sorted({1, max_decodes})
    probes = [Probe(r, 0, setting) for setting in extent.unet for r in rows]
    probes += [Probe(0, v, setting) for setting in extent.vae for v in decodes]
    probes += [Probe(r, v, setting) for setting in extent.beside for r in rows for v in decodes]
    caps = ItemCaps(max(1, max_rows // 2), max_decodes)
    return Profile(subject, tuple(map(cell, probes)), caps, "2026-11-22T00:00:00+00:00")


def cell(probe: Probe) -> Cell:
    """A cell of it."""
    ms = two_cores(probe)
    return Cell(probe.rows, probe.decodes, ms, ms, probe.setting)
