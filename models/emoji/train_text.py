"""Warm-up of the text encoder alone, a minute or two.

Every position from the end token on must tell which picture is meant: classification of picture and background, and
regression of the picture's coarse latents. Without it the UNet spends most of a short training finding out that the
text matters at all.
"""

import random
import time
from pathlib import Path
from typing import Any

import torch
from captions import caption
from latents import Kind
from networks import MAX_TOKENS, TEXT_WIDTH, make_text_encoder
from pictures import COLOURS
from torch import Tensor
from torch.nn import Linear, functional
from vocabulary import make_tokenizer

BATCH = 128
LEARNING_RATE = 1.5e-3
CAPTIONS_PER_PICTURE = 40
COARSE_COMPONENTS = 64
POSITIONS = 3  # per caption: the end token, the next, and a random one after


def train_text(work: Path, meta: list[dict[str, Any]], subset: list[int], minutes: float, seed: int) -> None:
    """Train on the emoji of `subset` and save WORK/text.pt."""
    rng = random.Random(seed + 3)
    torch.manual_seed(seed + 3)
    tokenizer = make_tokenizer(meta, work / "tokenizer")
    text_encoder = make_text_encoder(tokenizer)
    coarse = _coarse_latents(work, subset)
    captions, pictures, backgrounds = _captions(meta, subset, rng)
    ids = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    picture_head = Linear(TEXT_WIDTH, len(subset))
    coarse_head = Linear(TEXT_WIDTH, COARSE_COMPONENTS)
    background_head = Linear(TEXT_WIDTH, len(COLOURS))
    modules = (text_encoder, picture_head, coarse_head, background_head)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-3, fused=True)
    started, step = time.time(), 0
    while (elapsed := (time.time() - started) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * max(0.03, 1 - elapsed / minutes)
        chosen = torch.randint(0, len(ids), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(ids[chosen]).last_hidden_state.float()
        features = _features_from_the_end_on(hidden, ids[chosen], tokenizer.eos_token_id)
        truth = pictures[chosen].repeat_interleave(POSITIONS)
        picture_loss = functional.cross_entropy(picture_head(features), truth)
        coarse_loss = functional.mse_loss(coarse_head(features), coarse[truth])
        background_loss = functional.cross_entropy(
            background_head(features), backgrounds[chosen].repeat_interleave(POSITIONS)
        )
        loss = picture_loss + 0.5 * coarse_loss + 0.5 * background_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            accuracy = (picture_head(features).argmax(1) == truth).float().mean()
            print(
                f"text step {step} min {elapsed:.1f} ce {picture_loss.item():.3f} acc {accuracy:.3f} "
                f"loss {loss.item():.3f}",
                flush=True,
            )
    torch.save(text_encoder.state_dict(), work / "text.pt")
    print("text steps", step, flush=True)


def _features_from_the_end_on(hidden: Tensor, ids: Tensor, end_id: int) -> Tensor:
    """Hidden states [batch * POSITIONS, width] at the end token, the next position and a random later one."""
    end = (ids == end_id).float().argmax(1)
    last = MAX_TOKENS - 1
    later = (end + (last - end) * torch.rand(len(end))).long()
    positions = torch.stack([end, end + 1, later], 1).clamp(max=last)
    return hidden.gather(1, positions[..., None].expand(-1, -1, TEXT_WIDTH)).flatten(0, 1)


def _coarse_latents(work: Path, subset: list[int]) -> Tensor:
    """The principal components of each plain picture's latents at half size, at unit variance."""
    cached = torch.load(work / "latents.pt")
    plain = {
        int(index): functional.avg_pool2d(latents.float(), 2).flatten()
        for latents, index, kind in zip(cached["lat"], cached["idx"], cached["kind"], strict=True)
        if kind == Kind.PLAIN
    }
    stacked = torch.stack([plain[index] for index in subset])
    centred = stacked - stacked.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh
    components = centred @ directions[:COARSE_COMPONENTS].T
    return components / components.std()


def _captions(meta: list[dict[str, Any]], subset: list[int], rng: random.Random) -> tuple[list[str], Tensor, Tensor]:
    """Random captions, with the place in `subset` and the background colour that each is about."""
    colours = list(COLOURS)
    captions, pictures, backgrounds = [], [], []
    for place, index in enumerate(subset):
        for _ in range(CAPTIONS_PER_PICTURE):
            colour = rng.choice(colours) if rng.random() < 0.3 else "white"
            captions.append(caption(meta[index], colour, rng))
            pictures.append(place)
            backgrounds.append(colours.index(colour))
    return captions, torch.tensor(pictures), torch.tensor(backgrounds)
