"""Profiles and policies for simulations in tests."""

from pathlib import Path

from synerdiff.profiles import Cell, ItemCaps, Mechanisms, Profile, ProfileSubject, Setting, load

PAPER = load(Path("bench/profiles/paper-table.json"))
PAPER_SERIAL = load(Path("bench/profiles/paper-table-serial.json"))

CAPS = ItemCaps(4, 2)
SUBJECT = ProfileSubject("simulated", "digest", "a device", "fp32", (4, 64, 64), "shared")


def straight_line_profile(
    *,
    step_ms: float = 10.0,
    row_ms: float = 5.0,
    decode_ms: float = 20.0,
    caps: ItemCaps = CAPS,
    chunks: tuple[int, ...] = (1,),
) -> Profile:
    """L(r, v) = step_ms + row_ms r + decode_ms v, L(0, v) = decode_ms v, in however many of `chunks`."""
    grid = [(r, v) for r in range(2 * caps.unet + 1) for v in range(caps.vae + 1) if r or v]
    times = {(r, v): (step_ms + row_ms * r if r else 0.0) + decode_ms * v for r, v in grid}
    cells = tuple(
        Cell(r, v, ms, ms, Setting(c), origin="assumed") for c in chunks for (r, v), ms in times.items() if v or c == 1
    )
    return Profile(SUBJECT, cells, caps, "2026-11-22", mechanisms=Mechanisms())
