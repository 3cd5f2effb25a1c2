"""The paper's one table of latencies as profiles for the planner.

    python -m bench.paper_profiles

Writes bench/profiles/paper-table.json and bench/profiles/paper-table-serial.json. The paper shows pairs of (UNet tasks
stepped, decodes) with the time of running the pair concurrently. L(u, v) = f(u) + 21.6 v with f(1, 2, 3, 8) = 24.7,
44.2, 56.2, 133.0 fits every number; a task takes two rows. What a decode takes alone the paper does not say, so there
are two profiles: 1.3 times as long as it adds beside a UNet step, so that running side by side pays; and exactly as
long, so that it does not. Neither is what that GPU does: they keep a planner honest in both cases.
"""

from pathlib import Path

from synerdiff.profiles import Cell, ItemCaps, Origin, Profile, ProfileSubject, dump

FOLDER = Path(__file__).parent / "profiles"
DECODE_MS = 21.6
STEP_MS = {2: 24.7, 4: 44.2, 6: 56.2, 16: 133.0}  # by rows
GIVEN_MS = {(2, 1): 46.3, (4, 0): 44.2, (4, 2): 87.4, (6, 2): 99.4, (16, 6): 262.6}  # by rows and decodes


def paper_profile(name: str, alone_factor: float, caps: ItemCaps) -> Profile:
    """The table, with L(0, v) = `alone_factor` * 21.6 v."""
    rows, decodes = (1, 2, 3, 4, 5, 6, 16), (1, 2, 6)
    cells = [_cell(r, v) for r in rows for v in (0, *decodes)]
    cells += [_given(0, v, alone_factor * DECODE_MS * v, "assumed") for v in decodes]
    return Profile(
        subject=ProfileSubject("stable-diffusion-v1-5", "", name, "", (4, 64, 64), "as the paper's"),
        cells=tuple(cells),
        caps=caps,
        made_at="2026-05",
        notes=(
            "Latencies (ms) of SynerDiff, arXiv 2605.08835, and what follows from them: bench/paper_profiles.py.",
            f"A decode alone is assumed to take {alone_factor:g} times what it adds beside a UNet step.",
            "A row alone is assumed to lie on the line through two and four rows.",
        ),
    )


def _cell(rows: int, decodes: int) -> Cell:
    if (rows, decodes) in GIVEN_MS:
        return _given(rows, decodes, GIVEN_MS[rows, decodes], "given")
    origin: Origin = "fitted" if rows in STEP_MS else "interpolated" if rows > 2 else "assumed"
    return _given(rows, decodes, _step_ms(rows) + DECODE_MS * decodes, origin)


def _step_ms(rows: int) -> float:
    known = sorted(STEP_MS)
    below = max((r for r in known[:-1] if r <= rows), default=known[0])
    above = known[known.index(below) + 1]
    return STEP_MS[below] + (STEP_MS[above] - STEP_MS[below]) * (rows - below) / (above - below)


def _given(rows: int, decodes: int, ms: float, origin: Origin) -> Cell:
    return Cell(rows, decodes, round(ms, 3), round(ms, 3), origin=origin)


PROFILES = {
    "paper-table": paper_profile("the paper's, decodes slower alone", 1.3, ItemCaps(3, 2)),
    "paper-table-serial": paper_profile("the paper's, decodes as fast alone", 1.0, ItemCaps(8, 6)),
}


if __name__ == "__main__":
    for name, profile in PROFILES.items():
        (FOLDER / f"{name}.json").write_text(dump(profile), encoding="utf-8")
