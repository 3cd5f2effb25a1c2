"""When requests are due: as likely as they should be, the same for the same seed, and as a file has them."""

import itertools
import math
from pathlib import Path

import pytest

from synerdiff.cards import Sampler
from synerdiff.client.load.arrivals import bursts, from_file, poisson
from synerdiff.client.load.requests import LoadRequest, Mix
from synerdiff.errors import InvalidRequest

MIX = Mix(
    tuple(f"a thing {k}" for k in range(50)),
    LoadRequest("", 0, width=64, skip_cfg=False),
    steps=(8, 20),
    samplers=(Sampler.DDIM, Sampler.EULER),
)


def test_the_same_seed_gives_the_same_requests_and_another_one_others() -> None:
    assert poisson(5.0, MIX, 1, seconds=20) == poisson(5.0, MIX, 1, seconds=20)
    assert poisson(5.0, MIX, 1, seconds=20) != poisson(5.0, MIX, 2, seconds=20)
    assert bursts(16, MIX, 3) == bursts(16, MIX, 3)
    assert bursts(16, MIX, 3) != bursts(16, MIX, 4)


def test_a_longer_load_begins_as_a_shorter_one() -> None:
    long = poisson(5.0, MIX, 1, seconds=40)
    assert poisson(5.0, MIX, 1, seconds=20) == tuple(a for a in long if a.at_s < 20)
    assert poisson(5.0, MIX, 1, number=30) == long[:30]


def test_arrivals_are_poisson() -> None:
    arrivals = poisson(50.0, MIX, 4, seconds=100)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(arrivals)]
    assert min(gaps) > 0
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.1)  # as of exponential gaps, and of few other kinds
    late = sum(gap > 2 * mean for gap in gaps) / len(gaps)
    assert late == pytest.approx(math.exp(-2), rel=0.1)


def test_requests_are_drawn_from_the_whole_mix() -> None:
    drawn = [arrival.request for arrival in bursts(400, MIX, 5)]
    assert {request.num_inference_steps for request in drawn} == {8, 20}
    assert {request.sampler for request in drawn} == {Sampler.DDIM, Sampler.EULER}
    assert {(request.width, request.skip_cfg, request.guidance_scale) for request in drawn} == {(64, False, None)}
    assert len({request.prompt for request in drawn}) == 50
    assert len({request.seed for request in drawn}) == 400


def test_bursts_come_all_at_once_and_again() -> None:
    arrivals = bursts(3, MIX, 1, every_s=2.5, times=3)
    assert [arrival.at_s for arrival in arrivals] == [0.0] * 3 + [2.5] * 3 + [5.0] * 3
    assert len({arrival.request.seed for arrival in arrivals}) == 9


def test_a_file_of_times(tmp_path: Path) -> None:
    file = tmp_path / "times"
    file.write_text('1.5\n\n0.25\n{"at_s": 0.5, "prompt": "a cat", "steps": 7}\n{"at_s": 2}\n')
    arrivals = from_file(file, MIX, 1)
    assert [arrival.at_s for arrival in arrivals] == [0.25, 0.5, 1.5, 2.0]
    assert (arrivals[1].request.prompt, arrivals[1].request.num_inference_steps) == ("a cat", 7)
    assert arrivals[0].request.num_inference_steps in (8, 20)
    assert from_file(file, MIX, 1) == arrivals
    assert from_file(file, MIX, 2) != arrivals


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("soon", "neither seconds nor a JSON object"),
        ('{"prompt": "a cat"}', "at_s"),
        ('{"at_s": 1, "colour": "red"}', "colour"),
        ('{"at_s": 1, "steps": "many"}', "many"),
        ("-1", "at least 0"),
        ("nan", "at least 0"),
    ],
)
def test_a_line_that_is_no_arrival_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "times"
    file.write_text(f"0.5\n{line}\n")
    with pytest.raises(InvalidRequest, match=f"times:2.*{complaint}"):
        from_file(file, MIX, 1)


def test_loads_without_an_end_or_a_rate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="rate"):
        poisson(0.0, MIX, 1, seconds=1)
    with pytest.raises(InvalidRequest, match="needs an end"):
        poisson(1.0, MIX, 1)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InvalidRequest, match="no arrival"):
        from_file(tmp_path / "empty", MIX, 1)
