"""Prompts are encoded as the diffusers pipeline of the family encodes them, within rounding."""

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synerdiff.models.family import UnetSide
from synerdiff.models.loading import load_unet_side
from synerdiff.models.prompts import prompts_at_once
from tests.parity import served_latents, vae_side
from tests.reference import in_float64, reference_pipeline
from tests.rounding import A_LEVEL, off, rounding
from tests.tiny_models import FamilyName, edit_json
from tests.values import spec

PROMPTS = ["a slice of pizza", "", "Ein Äpfel, ☃ 42% OFF!!", "word " * 80]
# The random text encoders of the tiny models make more of rounding than a trained one.
_COARSEST = torch.finfo(torch.bfloat16).eps
LONG_PROMPT = "a lion " + "on a blue background " * 12


def pipeline_embeds(pipeline: Any, prompt: str, negative_prompt: str | None) -> tuple[list[Tensor], list[Tensor]]:
    """[hidden, pooled] of the prompt and of the negative prompt; no pooled without SDXL."""
    with torch.no_grad():
        embeds = pipeline.encode_prompt(
            prompt=prompt,
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt,
        )
    return [embed[0] for embed in embeds[0::2]], [embed[0] for embed in embeds[1::2]]


def parts(embeds: Any) -> list[Tensor]:
    return [embeds.hidden] if embeds.pooled is None else [embeds.hidden, embeds.pooled]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """To the bit."""
    assert len(ours) == len(theirs)
    for our_part, their_part in zip(ours, theirs, strict=True):
        assert torch.equal(our_part, their_part)


def assert_as_theirs(ours: Any, theirs: list[Tensor], exact: Any) -> None:
    """Within rounding: kernels round by where weights lie in memory, and the pipeline's are mapped from the file."""
    for our_part, their_part, exact_part in zip(parts(ours), theirs, parts(exact), strict=True):
        if exact_part.any():
            assert off(our_part, exact_part) <= rounding(exact_part, their_part, coarsest=_COARSEST)
        else:
            assert torch.equal(our_part, their_part)


def exactly(side: UnetSide) -> UnetSide:
    return with_encoders(side, in_float64, at_once=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_equals_the_pipelines(unet_side: UnetSide, model_path: Path, prompt: str) -> None:
    theirs, _ = pipeline_embeds(reference_pipeline(model_path), prompt, None)
    assert_as_theirs(unet_side.encode([prompt])[0], theirs, exactly(unet_side).encode([prompt])[0])


@pytest.mark.parametrize("negative_prompt", ["", "blurry, ugly"])
def test_negative_prompt_equals_the_pipelines(unet_side: UnetSide, model_path: Path, negative_prompt: str) -> None:
    _, theirs = pipeline_embeds(reference_pipeline(model_path), "a dog", negative_prompt or None)
    exact = exactly(unet_side).encode_negative([negative_prompt])[0]
    assert_as_theirs(unet_side.encode_negative([negative_prompt])[0], theirs, exact)


class Counted(torch.nn.Module):
    """A text encoder that counts the prompts of each call."""

    def __init__(self, text_encoder: Any, counts: list[int]) -> None:
        super().__init__()
        self.text_encoder, self.counts = text_encoder, counts
        self.config, self.dtype, self.device = text_encoder.config, text_encoder.dtype, text_encoder.device

    def forward(self, ids: Tensor, **how: Any) -> Any:
        self.counts.append(len(ids))
        return self.text_encoder(ids, **how)


def with_encoders(side: UnetSide, change: Callable[[Any], Any], at_once: int = 16) -> UnetSide:
    """The side with every text encoder changed, and prompts encoded together as on a GPU."""
    encoder: Any = side.encoder
    if hasattr(encoder, "text_encoders"):
        changed = replace(encoder, text_encoders=tuple(map(change, encoder.text_encoders)), at_once=at_once)
    else:
        changed = replace(encoder, text_encoder=change(encoder.text_encoder), at_once=at_once)
    return replace(side, encoder=changed)


def test_prompts_that_are_encoded_together_are_those_encoded_alone_within_rounding(unet_side: UnetSide) -> None:
    counts: list[int] = []
    together = with_encoders(unet_side, lambda text_encoder: Counted(text_encoder, counts)).encode(PROMPTS)
    assert set(counts) == {len(PROMPTS)}
    exact = exactly(unet_side).encode(PROMPTS)
    for place, (found, alone) in enumerate(zip(together, unet_side.encode(PROMPTS), strict=True)):
        assert found.cut_text == alone.cut_text
        neighbour = parts(exact[place - 1])
        for part, alone_part, exact_part, other in zip(
            parts(found), parts(alone), parts(exact[place]), neighbour, strict=True
        ):
            bound = rounding(exact_part, alone_part, coarsest=_COARSEST)
            assert off(part, exact_part) <= bound < off(part, other)
            assert part.untyped_storage().nbytes() == part.nbytes, "the others' memory is kept with it"


def test_pictures_of_prompts_encoded_together_are_those_of_prompts_encoded_alone(model_path: Path) -> None:
    side = load_unet_side(model_path, torch.float32)
    requests = [
        spec(f"{k}/0", prompt=prompt, negative_prompt="blue" if k % 2 else "", seed=k)
        for k, prompt in enumerate(PROMPTS)
    ]
    decode = vae_side(model_path).decode
    alone = [decode(latents[None]) for latents in served_latents(side, requests)]
    together = [
        decode(latents[None]) for latents in served_latents(with_encoders(side, lambda encoder: encoder), requests)
    ]
    for found, wanted in zip(together, alone, strict=True):
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= A_LEVEL


def test_only_a_gpu_encodes_prompts_together() -> None:
    assert prompts_at_once(torch.device("cpu")) == 1
    assert prompts_at_once(torch.device("cuda", 0)) > 1


def test_sdxl_without_negative_prompt_gets_zeros(tiny_models: dict[str, Path]) -> None:
    side = load_unet_side(tiny_models["sdxl"], torch.float32)
    (empty,) = side.encode_negative([""])
    assert all(not part.any() for part in parts(empty))
    assert all(part.any() for part in parts(side.encode([""])[0]))


def test_sdxl_that_does_not_force_zeros_encodes_the_empty_prompt(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("sdxl")
    edit_json(path / "model_index.json", force_zeros_for_empty_prompt=False)
    side = load_unet_side(path, torch.float32)
    _, theirs = pipeline_embeds(reference_pipeline(path), "a dog", None)
    assert_as_theirs(side.encode_negative([""])[0], theirs, exactly(side).encode_negative([""])[0])
    assert theirs[0].any()


def test_attention_mask_is_used_where_the_config_says_so(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("sd2")
    (unmasked,) = load_unet_side(path, torch.float32).encode(["a dog"])
    edit_json(path / "text_encoder" / "config.json", use_attention_mask=True)
    side = load_unet_side(path, torch.float32)
    (masked,) = side.encode(["a dog"])
    theirs, _ = pipeline_embeds(reference_pipeline(path), "a dog", None)
    assert_as_theirs(masked, theirs, exactly(side).encode(["a dog"])[0])
    assert not torch.equal(masked.hidden, unmasked.hidden)


def test_an_embedding_does_not_depend_on_its_neighbours(unet_side: UnetSide) -> None:
    together = unet_side.encode(PROMPTS)
    for prompt, embeds in zip(PROMPTS, together, strict=True):
        assert_same(parts(embeds), parts(unet_side.encode([prompt])[0]))


def test_cut_text_is_what_the_pipeline_warns_of(
    unet_side: UnetSide, model_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = reference_pipeline(model_path)
    logger = logging.getLogger(type(pipeline).__module__)
    monkeypatch.setattr(logger, "disabled", False)
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.WARNING)
    try:
        pipeline_embeds(pipeline, LONG_PROMPT, None)
    finally:
        logger.removeHandler(caplog.handler)
    (embeds,) = unet_side.encode([LONG_PROMPT])
    assert embeds.cut_text.endswith("on a blue background")
    assert f"['{embeds.cut_text}']" in caplog.text.replace(" ']", "']")


def test_nothing_is_cut_at_the_limit(unet_side: UnetSide) -> None:
    fits, too_long = "a " * (unet_side.encoder.max_tokens - 2), "a " * (unet_side.encoder.max_tokens - 1)
    assert [embeds.cut_text for embeds in unet_side.encode([fits, too_long])] == ["", "a"]


def test_encoding_from_several_threads(unet_side: UnetSide) -> None:
    alone = [parts(embeds) for embeds in unet_side.encode(PROMPTS)]
    failures: list[BaseException] = []

    def encode_often() -> None:
        try:
            for _ in range(5):
                for ours, theirs in zip(unet_side.encode(PROMPTS), alone, strict=True):
                    assert_same(parts(ours), theirs)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=encode_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_nbytes_counts_both_parts(unet_side: UnetSide) -> None:
    (embeds,) = unet_side.encode(["a dog"])
    assert embeds.nbytes == sum(4 * part.numel() for part in parts(embeds))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_textual_inversion_of_several_vectors_uses_all_of_them(
    copy_of: Callable[[str], Path], family: FamilyName
) -> None:
    path = copy_of(family)
    for number, model_class in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))[: 1 + (family == "sdxl")]:
        _bake_in(path, number, model_class, ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"])
    side, pipeline = load_unet_side(path, torch.float32), reference_pipeline(path)
    prompt, negative = "a <cat-toy> on a table", "no <cat-toy>"
    theirs, theirs_negative = pipeline_embeds(pipeline, prompt, negative)
    exact = exactly(side)
    assert_as_theirs(side.encode([prompt])[0], theirs, exact.encode([prompt])[0])
    assert_as_theirs(side.encode_negative([negative])[0], theirs_negative, exact.encode_negative([negative])[0])
    first_alone = parts(side.encode(["a dog on a table"])[0])
    assert not torch.equal(first_alone[0], theirs[0])


def _bake_in(path: Path, number: str, model_class: Any, tokens: list[str]) -> None:
    """Add tokens to a directory's tokenizer, each with a vector of its own."""
    tokenizer = CLIPTokenizer.from_pretrained(path / f"tokenizer{number}")
    tokenizer.add_tokens(tokens)
    encoder = model_class.from_pretrained(path / f"text_encoder{number}")
    encoder.resize_token_embeddings(len(tokenizer))
    encoder.get_input_embeddings().weight.data[-len(tokens) :].normal_(generator=torch.Generator().manual_seed(1))
    for part, saved in (("tokenizer", tokenizer), ("text_encoder", encoder)):
        shutil.rmtree(path / f"{part}{number}")
        saved.save_pretrained(path / f"{part}{number}")
