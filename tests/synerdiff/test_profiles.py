"""Profiles: what is measured is given back, what lies between is interpolated, and a bad file is refused by name."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synerdiff.errors import InvalidRequest
from synerdiff.profiles import (
    Cell,
    Choice,
    Evidence,
    ItemCaps,
    KneeFound,
    Mechanisms,
    Profile,
    ProfileSubject,
    Setting,
    dump,
    load,
    parse,
)
from synerdiff.skip_cfg import SkipCfgBudget

WHOLE, HALVES = Setting(1, 2, 2), Setting(2, 1, 1)
SUBJECT = ProfileSubject("emoji", "abc", "2 cores", "float32", (4, 8, 8), "threads")


def cell(rows: int, decodes: int, ms: float, setting: Setting = WHOLE, unet_ms: float = 0.0) -> Cell:
    return Cell(rows, decodes, ms, ms * 1.5, setting, unet_ms=unet_ms)


def profile(*cells: Cell) -> Profile:
    """UNet steps at 2 and 4 rows, decodes at 1 and 3, both beside each other; `cells` come on top."""
    base = (
        cell(2, 0, 10),
        cell(4, 0, 16),
        cell(0, 1, 8),
        cell(0, 3, 20),
        cell(2, 1, 14, unet_ms=11),
        cell(2, 3, 26),
        cell(4, 1, 22, unet_ms=18),
        cell(4, 3, 40),
    )
    return Profile(
        SUBJECT,
        base + cells,
        ItemCaps(4, 3),
        made_at="2026-11-22",
        skip_cfg=SkipCfgBudget("extrapolate:0.5", 0.5, 1),
        mechanisms=Mechanisms(chunking=True),
        notes=("a note",),
    )


@pytest.mark.parametrize(
    ("rows", "decodes", "ms"),
    [
        (0, 0, 0),
        (2, 0, 10),
        (3, 0, 13),
        (6, 0, 22),
        (1, 0, 10),  # fewer rows than were measured take as long as the fewest
        (0, 1, 8),
        (0, 2, 14),
        (0, 5, 32),
        (0, 0.5, 4),  # half of a decode takes half of its time
        (2, 1, 14),
        (3, 1, 18),
        (3, 2, 25.5),
        (6, 1, 30),
        (4, 0.95, 0.95 * 22),
        (4, 0.1, 18),  # a step beside a sliver of a decode takes no less than the step
        (1, 1, 14),
    ],
)
def test_latency_is_what_was_measured_or_lies_between(rows: int, decodes: float, ms: float) -> None:
    assert profile().latency_ms(rows, decodes) == pytest.approx(ms)


def test_without_the_steps_own_time_a_part_of_a_decode_beside_them_counts_as_whole() -> None:
    bare = replace(profile(), cells=tuple(replace(c, unet_ms=0.0) for c in profile().cells))
    assert bare.latency_ms(4, 0.1) == 22


def test_more_work_is_never_faster() -> None:
    falling = Profile(SUBJECT, (cell(2, 0, 10), cell(4, 0, 8), cell(0, 1, 5)), ItemCaps(8, 8), "now")
    assert falling.latency_ms(16, 0) == 8
    assert falling.latency_ms(0, 3) == 15


def test_the_fastest_setting_is_chosen_among_those_with_that_many_bands() -> None:
    both = profile(cell(0, 1, 5, HALVES), cell(0, 3, 60, HALVES), cell(4, 0, 17, HALVES))
    assert both.choice(0, 1) == Choice(5, HALVES)
    assert both.choice(0, 3) == Choice(20, WHOLE)
    assert both.choice(0, 3, chunks=2) == Choice(60, HALVES)
    assert both.choice(4, 0, chunks=2) == Choice(16, WHOLE)
    assert both.choice(4, 1, chunks=2) is None
    assert both.chunk_counts == (1, 2)


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match="4 UNet rows beside 1 decodes"):
        profile().latency_ms(4, 1, chunks=2)


def test_overlap_gain_and_knee() -> None:
    assert profile().overlap_gain(4, 1) == pytest.approx(1 - 22 / 24)
    linear = Profile(SUBJECT, (cell(2, 0, 10), cell(4, 0, 20), cell(16, 0, 80), cell(0, 1, 5)), ItemCaps(8, 1), "now")
    assert linear.knee_rows() == 2
    overhead = Profile(SUBJECT, (cell(1, 0, 50), cell(16, 0, 51), cell(0, 1, 5)), ItemCaps(8, 1), "now")
    assert overhead.knee_rows() == 16


@pytest.mark.parametrize(
    ("low", "high", "error", "of_overhead", "of_none"),
    [
        (40, 40, 0.001, 48, 4),  # sure
        (32, 48, 0.06, 48, 16),  # surely past the 16 of no profile, but not whether fewer were enough
        (4, 48, 0.06, 16, 16),  # not even that
        (4, 48, 0.03, 16, 4),
    ],
)
def test_an_unsure_knee_leaves_the_default_only_as_far_as_is_sure(
    low: int, high: int, error: float, of_overhead: int, of_none: int
) -> None:
    def knee(overhead_ms: float) -> int:
        cells = [cell(rows, 0, overhead_ms + 10 * rows) for rows in (4, 8, 16, 32, 48)]
        found = KneeFound(40, low, high, error)
        return Profile(SUBJECT, (*cells, cell(0, 1, 5)), ItemCaps(24, 1), "now", knee=found).knee_rows()

    assert (knee(200), knee(0)) == (of_overhead, of_none)


def test_a_profile_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    found = Evidence("side by side", 0.8, 0.7, 0.9, 7, taken=True), Evidence("items in step", 1.0, 0.9, 1.1, 28, True)
    for each in (profile(), replace(profile(), knee=KneeFound(8, 6, 12, 0.01), evidence=found)):
        path.write_text(dump(each))
        assert load(path) == each
        assert load(path).digest == each.digest
    assert sum('"rows"' in line for line in dump(profile()).splitlines()) == len(profile().cells)
    assert pickle.loads(pickle.dumps(profile())) == profile()


def test_the_digest_follows_the_numbers() -> None:
    slower = profile().with_cells(replace(c, median_ms=c.median_ms * 1.01) for c in profile().cells)
    assert slower.digest != profile().digest
    assert hash(slower) != hash(profile()) == hash(profile())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.update(version=1), "version: 1; this SynerDiff reads version 2: profile the device anew"),
        (lambda f: f.pop("version"), "version: missing"),
        (lambda f: f.pop("subject"), "subject: missing"),
        (lambda f: f.pop("caps"), "caps: missing"),
        (lambda f: f["subject"].pop("device"), "subject.device: missing"),
        (lambda f: f.update(surprise=1), "surprise: 1; this version of SynerDiff does not know"),
        (lambda f: f["caps"].update(unet=0), "caps.unet: 0: Input should be greater than 0"),
        (
            lambda f: f.update(knee={"rows": 8, "low": 10, "high": 12, "error": 0.1}),
            "knee: .* 1 <= low <= rows <= high",
        ),
        (lambda f: f["cells"].clear(), "cells: each side"),
        (lambda f: f["cells"][0].update(rows=-2), r"cells\[0\].rows: -2: Input should be greater than or equal to 0"),
        (lambda f: f["cells"][0].update(rows=2.5), r"cells\[0\].rows: 2.5: Input should be a valid integer"),
        (lambda f: f["cells"][0].update(rows="2"), r"cells\[0\].rows: '2': Input should be a valid integer"),
        (lambda f: f["cells"][0].update(rows=0), r"cells\[0\]: 0 rows beside 0 decodes"),
        (
            lambda f: f["cells"][2]["setting"].update(chunks=0),
            r"cells\[2\].setting.chunks: 0: Input should be greater than 0",
        ),
        (lambda f: f["cells"][1].update(median_ms=0), r"cells\[1\]: median_ms 0"),
        (lambda f: f["cells"][1].update(median_ms=float("nan")), r"cells\[1\].median_ms: nan: "),
        (lambda f: f["cells"][1].update(p90_ms=float("inf")), r"cells\[1\].p90_ms: inf: .* finite"),
        (lambda f: f["cells"][1].update(p90_ms=1), r"cells\[1\]: median_ms 16.0 and p90_ms 1.0"),
        (
            lambda f: f["cells"][1].update(unet_ms=-1),
            r"cells\[1\].unet_ms: -1: Input should be greater than or equal to 0",
        ),
        (lambda f: f["cells"][1].update(origin="guessed"), r"cells\[1\].origin: 'guessed': Input should be 'measured'"),
        (lambda f: f["cells"].append(dict(f["cells"][0])), "cells: an item that stands there twice"),
        (lambda f: f["cells"].pop(), "cells: an uneven grid"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, change: Any, named: str) -> None:
    fields = json.loads(dump(profile()))
    change(fields)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(InvalidRequest, match=named) as refusal:
        load(path)
    assert str(path) in refusal.value.message


@pytest.mark.parametrize("text", ["", "[]", "3", '"profile"', "{", "\x00", '{"version": 1, "subject": 3}'])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="profile"):
        parse(text)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InvalidRequest, match="binary: "):
        load(tmp_path / "binary")
    with pytest.raises(InvalidRequest, match="No such file"):
        load(tmp_path / "none")
