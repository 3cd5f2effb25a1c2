"""What requests ask for."""

from itertools import islice
from pathlib import Path

import pytest

from synerdiff.cards import Sampler
from synerdiff.client.load.requests import Drawn, LoadRequest, Mix, prompts_of_lines, prompts_of_words
from synerdiff.client.options import GenerateOptions, generate_request
from synerdiff.errors import InvalidRequest
from synerdiff.v1 import images_pb2

MIX = Mix(("a cat", "a dog", "a car"))


def test_drawn_requests_are_the_same_whenever_they_are_gone_through() -> None:
    endless = Drawn(MIX, 7)
    first = list(islice(endless, 20))
    assert list(islice(endless, 20)) == first
    assert list(Drawn(MIX, 7, 20)) == first
    assert list(Drawn(MIX, 8, 20)) != first


def test_every_option_of_a_request_is_one_that_can_be_asked_for() -> None:
    assert LoadRequest("a cat", 1).options().keys() <= GenerateOptions.__annotations__.keys()
    full = LoadRequest("a cat", 3, 9, 1.5, Sampler.EULER, 64, 96, "a dog", 2, False, "emoji")
    pb = generate_request(full.prompt, full.options())
    assert (pb.prompt, pb.seed, pb.num_inference_steps, pb.guidance_scale) == ("a cat", 3, 9, 1.5)
    assert (pb.width, pb.height, pb.num_images, pb.model, pb.negative_prompt) == (64, 96, 2, "emoji", "a dog")
    assert (pb.sampler, pb.skip_cfg.mode) == (images_pb2.SAMPLER_EULER, images_pb2.SKIP_CFG_MODE_OFF)


def test_prompts_come_from_words_and_from_lines(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("|red apple|\ncat|\n")
    assert prompts_of_words(tmp_path / "words") == ("a red apple", "a cat")
    (tmp_path / "lines").write_text("a castle at dusk\n\n  two cats \n")
    assert prompts_of_lines(tmp_path / "lines") == ("a castle at dusk", "two cats")
    (tmp_path / "lines").write_text("\n")
    with pytest.raises(InvalidRequest, match="no prompt"):
        prompts_of_lines(tmp_path / "lines")
