"""The UNet, trained on cached latents together with the warmed-up text encoder, which follows slowly."""

import copy
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import caption
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from latents import Kind
from networks import MAX_TOKENS, SCHEDULER, make_text_encoder, make_unet
from torch import Tensor
from torch.nn import ModuleList
from transformers import CLIPTokenizer
from vocabulary import make_tokenizer

CAPTIONS_PER_LATENT = 16
EMPTY_SHARE = 0.1  # for classifier-free guidance
AVERAGE_DECAY = 0.998
STEPS_PER_LOG, STEPS_PER_CHECKPOINT = 50, 300


@dataclass(frozen=True)
class UnetTraining:
    """Settings. `minutes` count from the first leg on; `mix` are the shares of plain and jittered pictures."""

    minutes: float
    learning_rate: float
    text_rate: float  # the text encoder's learning rate, as a share of the UNet's
    batch: int
    mix: tuple[float, float]
    seed: int
    compiled: bool
    resumed: bool
    initial: Path | None  # a checkpoint whose UNet is the start


@dataclass
class Checkpoint:
    """What a leg leaves for the next: networks, their running average, optimizer and counters."""

    networks: ModuleList
    averaged: ModuleList
    optimizer: torch.optim.Optimizer
    path: Path
    step: int = 0
    seen: int = 0
    spent_minutes: float = 0.0
    started: float = 0.0

    @property
    def minutes(self) -> float:
        """Training time of all legs so far."""
        return self.spent_minutes + (time.time() - self.started) / 60

    def save(self) -> None:
        """Replace the file in one piece."""
        state = {
            "model": self.networks.state_dict(),
            "ema": self.averaged.state_dict(),
            "opt": self.optimizer.state_dict(),
            "step": self.step,
            "seen": self.seen,
            "spent": self.minutes,
        }
        partial = self.path.with_suffix(".pt.tmp")
        torch.save(state, partial)
        partial.replace(self.path)

    def load(self) -> None:
        """Go on from the file."""
        state = torch.load(self.path)
        self.networks.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["opt"])
        self.step, self.seen, self.spent_minutes = state["step"], state["seen"], state["spent"]


class LatentPool:
    """Draws latents without replacement inside each kind, so that every emoji gets its share."""

    def __init__(self, by_kind: list[list[int]], mix: tuple[float, float], rng: random.Random) -> None:
        self._by_kind, self._mix, self._rng = by_kind, mix, rng
        self._waiting: list[list[int]] = [[] for _ in by_kind]

    def draw(self) -> int:
        """The index of one latent."""
        drawn, (plain, jittered) = self._rng.random(), self._mix
        kind = Kind.PLAIN if drawn < plain else Kind.JITTERED if drawn < plain + jittered else Kind.COLOURED
        if not self._waiting[kind]:
            self._waiting[kind] = self._by_kind[kind][:]
            self._rng.shuffle(self._waiting[kind])
        return self._waiting[kind].pop()


def train_unet(work: Path, meta: list[dict[str, Any]], subset: list[int], training: UnetTraining) -> None:
    """Train on the emoji of `subset` and save WORK/ldm.pt."""
    rng = random.Random(training.seed + 2)
    torch.manual_seed(training.seed + 2)
    tokenizer = make_tokenizer(meta, work / "tokenizer")
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    unet.set_attn_processor(AttnProcessor())  # plain attention: its backward pass is faster than flash on a CPU
    cached = torch.load(work / "latents.pt")
    latents = cached["lat"].float()
    pool = LatentPool(_by_kind(cached, set(subset)), training.mix, rng)
    ids = _caption_ids(tokenizer, meta, cached, rng)
    empty = tokenizer([""], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    checkpoint = _start(work, text_encoder, unet, training)
    forward = torch.compile(unet) if training.compiled else unet
    alphas = DDPMScheduler(**SCHEDULER).alphas_cumprod
    parameters = list(checkpoint.networks.parameters())
    checkpoint.networks.train()
    checkpoint.started = logged = time.time()
    losses = []
    while (elapsed := checkpoint.minutes) < training.minutes:
        learning_rate = training.learning_rate * _schedule(checkpoint.step, elapsed / training.minutes)
        for group in checkpoint.optimizer.param_groups:
            group["lr"] = learning_rate * group["k"]
        chosen = torch.tensor([pool.draw() for _ in range(training.batch)])
        tokens = ids[chosen, torch.randint(0, CAPTIONS_PER_LATENT, (training.batch,))].long()
        tokens[torch.rand(training.batch) < EMPTY_SHARE] = empty
        loss = _loss(forward, text_encoder, latents[chosen], tokens, alphas)
        checkpoint.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        checkpoint.optimizer.step()
        decay = min(AVERAGE_DECAY, (checkpoint.step + 1) / (checkpoint.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(checkpoint.averaged.parameters()), parameters, 1 - decay)
        checkpoint.step += 1
        checkpoint.seen += training.batch
        losses.append(loss.item())
        if checkpoint.step % STEPS_PER_LOG == 0:
            speed = training.batch * STEPS_PER_LOG / (time.time() - logged)
            logged = time.time()
            print(
                f"unet step {checkpoint.step} min {elapsed:.1f} seen {checkpoint.seen} "
                f"loss {np.mean(losses[-STEPS_PER_LOG:]):.4f} lr {learning_rate:.1e} {speed:.0f}/s",
                flush=True,
            )
        if checkpoint.step % STEPS_PER_CHECKPOINT == 0:
            checkpoint.save()
    checkpoint.save()


def _start(work: Path, text_encoder: Any, unet: Any, training: UnetTraining) -> Checkpoint:
    """Networks as the earlier stages, or an earlier leg of this one, left them."""
    if (work / "text.pt").exists():
        text_encoder.load_state_dict(torch.load(work / "text.pt"))
    if training.initial is not None:
        weights = torch.load(training.initial)["model"]
        unet.load_state_dict({name[2:]: weight for name, weight in weights.items() if name.startswith("0.")})
    networks = ModuleList([unet, text_encoder])
    groups = [
        {"params": list(unet.parameters()), "k": 1.0},
        {"params": list(text_encoder.parameters()), "k": training.text_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    averaged = copy.deepcopy(networks).requires_grad_(False)
    checkpoint = Checkpoint(networks, averaged, optimizer, work / "ldm.pt")
    if training.resumed and checkpoint.path.exists():
        checkpoint.load()
    return checkpoint


def _schedule(step: int, progress: float) -> float:
    """Warm-up, flat until half of the time, then a cosine down to 2 %."""
    warm_up = min(1, (step + 1) / 200)
    if progress < 0.5:
        return warm_up
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.5) / 0.5)))


def _loss(unet: Any, text_encoder: Any, clean: Tensor, tokens: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The v-prediction loss at stratified timesteps, with a truncated SNR+1 weight.

    The weight of the x0 loss is between 1 and 5: the noisy steps, where the text decides what is drawn, keep a full
    share; plain min-SNR would give them almost none.
    """
    count = len(clean)
    noise = torch.randn_like(clean)
    # Stratified timesteps vary less than independent ones; the power gives the noisy end more of them.
    spread = (torch.arange(count) + torch.rand(count)) / count
    timesteps = (spread**0.7 * 1000).long().clamp(max=999)[torch.randperm(count)]
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    with torch.autocast("cpu", torch.bfloat16):
        hidden = text_encoder(tokens).last_hidden_state
        predicted = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
    signal_to_noise = (alphas_cumprod / (1 - alphas_cumprod))[timesteps]
    weight = torch.clamp(signal_to_noise + 1, max=5.0) / (signal_to_noise + 1)
    return ((predicted.float() - velocity).pow(2).mean((1, 2, 3)) * weight).mean()


def _by_kind(cached: dict[str, Any], subset: set[int]) -> list[list[int]]:
    """The indices of the latents of each kind that are of the emoji in `subset`."""
    return [
        [
            latent
            for latent in range(len(cached["lat"]))
            if cached["kind"][latent] == kind and int(cached["idx"][latent]) in subset
        ]
        for kind in Kind
    ]


def _caption_ids(
    tokenizer: CLIPTokenizer, meta: list[dict[str, Any]], cached: dict[str, Any], rng: random.Random
) -> Tensor:
    """Captions are random text, tokenised once: [latents, CAPTIONS_PER_LATENT, MAX_TOKENS]."""
    ids = torch.empty(len(cached["lat"]), CAPTIONS_PER_LATENT, MAX_TOKENS, dtype=torch.int32)
    for latent, (index, colour) in enumerate(zip(cached["idx"], cached["col"], strict=True)):
        captions = [caption(meta[index], colour, rng) for _ in range(CAPTIONS_PER_LATENT)]
        ids[latent] = tokenizer(
            captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
    return ids
