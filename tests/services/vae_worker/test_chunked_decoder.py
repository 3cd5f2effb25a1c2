"""Decoding in row bands: what `vae.decode` gives, in less memory, in units; and a refusal of what is not known."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from operator import attrgetter
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bench.chunked_decode import LiveBytes
from services.vae_worker import band_layers, bands, chunked_decoder
from services.vae_worker.chunked_decoder import ChunkedDecoder, NotChunkable
from tests.reference import in_float64
from tests.rounding import assert_rounded
from tests.services.vae_worker.stage import MODEL


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_layer_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers too, in bands of one row if need be."""
    monkeypatch.setattr(chunked_decoder, "SMALL_LAYER", 0.0)
    monkeypatch.setattr(chunked_decoder, "SMALLEST_BAND", 1)


@pytest.fixture
def merged_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs."""
    monkeypatch.setattr(bands, "gathered", bands.merged)


def random_vae(*channels: int, layers: int = 2, groups: int = 4, **options: Any) -> AutoencoderKL:
    """A seeded VAE of Stable Diffusion's block structure; its norms have weights and biases that matter."""
    torch.manual_seed(5)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        layers_per_block=layers,
        norm_num_groups=groups,
        **options,
    ).eval()
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return vae


VAES: dict[str, Callable[[], AutoencoderKL]] = {
    "bundled": lambda: AutoencoderKL.from_pretrained(MODEL, subfolder="vae"),
    "sd1": lambda: random_vae(8, 16, 32, 32, sample_size=512),
    "sdxl": lambda: random_vae(8, 16, 32, 32, groups=8, sample_size=1024, force_upcast=True),
    "one resolution, nothing beside": lambda: random_vae(
        16, layers=1, use_post_quant_conv=False, use_quant_conv=False, mid_block_add_attention=False
    ),
}


@cache
def vae_of(name: str) -> AutoencoderKL:
    return VAES[name]()


@torch.no_grad()
def assert_decodes(vae: AutoencoderKL, latents: Tensor, *counts: int) -> None:
    """That bands, as many as each of `counts` says, give what `vae.decode` gives."""
    exact, whole = in_float64(vae).decode(latents.double()).sample, vae.decode(latents).sample
    for count in counts:
        assert_rounded(ChunkedDecoder(vae).decode(latents, count), exact, whole)


def latents_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("shape", [(1, 4, 7, 6), (2, 4, 5, 3), (4, 4, 3, 2)])
@pytest.mark.usefixtures("every_layer_in_bands")
def test_equals_the_unchunked_decode(name: str, shape: tuple[int, ...]) -> None:
    assert_decodes(vae_of(name), latents_of(*shape), 1, 3, 16, 100)


@pytest.mark.parametrize("name", ["bundled", "sd1"])
@pytest.mark.usefixtures("every_layer_in_bands", "merged_statistics")
def test_merged_statistics_are_those_of_the_whole(name: str) -> None:
    assert_decodes(vae_of(name), latents_of(3, 4, 5, 5), 2, 13)


def test_the_bundled_model_at_its_own_cuts() -> None:
    assert_decodes(vae_of("bundled"), latents_of(1, 4, 11, 6), *range(1, 17))


@pytest.fixture
def convolved(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What convolutions were given in bands, but for the latents themselves."""
    seen: list[Tensor] = []
    convolve = band_layers._convolve

    def watched(conv: nn.Conv2d, rows: Tensor) -> Tensor:
        if rows.shape[1] > 4:
            seen.append(rows)
        return convolve(conv, rows)

    monkeypatch.setattr(band_layers, "_convolve", watched)
    return seen


@pytest.mark.parametrize("lies", [torch.channels_last, torch.contiguous_format])
@pytest.mark.usefixtures("every_layer_in_bands", "merged_statistics")
def test_bands_lie_as_the_weights_want_them(lies: torch.memory_format, convolved: list[Tensor]) -> None:
    """Otherwise each convolution reorders its input first."""
    vae: Any = random_vae(8, 16, 32, 32)
    vae.to(memory_format=lies)
    assert_decodes(vae, latents_of(2, 4, 7, 6), 1, 4)
    assert convolved
    assert all(rows.is_contiguous(memory_format=lies) for rows in convolved)


@pytest.mark.parametrize("lies", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 0), (torch.bfloat16, 1), (torch.float16, 1)])
def test_merged_statistics_read_a_band_where_it_lies(
    lies: torch.memory_format, dtype: torch.dtype, copies: int
) -> None:
    """In half precision through one float32 copy of it; the mean is large beside the deviation."""
    values = 5 + latents_of(2, 16, 24, 32)
    band = values.to(dtype).contiguous(memory_format=lies)
    with LiveBytes() as held:
        found = bands.band_moments(band, 4)
    few_bytes = 16 * 2 * 4 * 8  # some numbers per image and group, in float64
    assert held.peak <= copies * 4 * band.numel() + few_bytes
    exact, references = (band.to(each).reshape(2, 4, -1) for each in (torch.float64, torch.float32))
    assert_rounded(found.mean, exact.mean(-1), references.mean(-1))
    assert_rounded(found.var, exact.var(-1, correction=0), references.var(-1, correction=0))
    assert found.count == 4 * 24 * 32


def test_at_the_true_widths() -> None:
    assert_decodes(random_vae(128, 256, 512, 512, groups=32), latents_of(1, 4, 5, 4), 4)


def assert_found(count: int) -> None:
    """That what has been broken shows."""
    with pytest.raises(AssertionError, match="off by"):
        assert_decodes(vae_of("sd1"), latents_of(1, 4, 9, 8), count)


def window_without_halo(top: bool, below: bool) -> Callable[..., Tensor]:
    def window(source: Any, start: int, stop: int, halo: int, norm: Any = None, lies: Any = None) -> Tensor:
        rows = bands.window(source, start, stop, halo, norm, lies)
        if top and halo:
            rows[:, :, :halo] = 0
        if below and halo:
            rows[:, :, -halo:] = 0
        return rows

    return window


@pytest.mark.parametrize(("top", "below"), [(True, False), (False, True)])
def test_a_missing_halo_would_be_found(monkeypatch: pytest.MonkeyPatch, top: bool, below: bool) -> None:
    monkeypatch.setattr(band_layers, "window", window_without_halo(top, below))
    assert_found(2)


def test_statistics_of_single_bands_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of_all = bands.gathered
    monkeypatch.setattr(bands, "gathered", lambda norm, parts: of_all(norm, parts[:1]))
    assert_found(2)


@pytest.mark.usefixtures("merged_statistics")
@pytest.mark.parametrize("fault", ["first", "variance", "weights"])
def test_a_wrong_merge_would_be_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = bands.merge

    def wrong(parts: list[bands.Moments]) -> bands.Moments:
        if fault == "first":
            return parts[0]
        if fault == "variance":
            variance = torch.stack([part.var for part in parts]).mean(dim=0)
            return bands.Moments(0, right(parts).mean, variance)
        return right([bands.Moments(1, part.mean, part.var) for part in parts])

    monkeypatch.setattr(bands, "merge", wrong)
    assert_found(5)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_fractions_rise_evenly_to_one(count: int) -> None:
    fractions = list(ChunkedDecoder(vae_of("bundled")).units(latents_of(1, 4, 12, 12), count))
    assert fractions == sorted(set(fractions))
    assert fractions[0] > 0
    assert fractions[-1] == 1.0
    assert fractions[-2] < 1.0
    steps = [after - before for before, after in pairwise([0.0, *fractions])]
    assert max(steps) < (0.3 if count == 1 else 0.3 / count + 0.1)


def test_no_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="bands: 0 is below 1"):
        ChunkedDecoder(vae_of("sd1")).decode(latents_of(1, 4, 2, 2), 0)


@torch.no_grad()
def test_eight_bands_take_half_of_the_memory() -> None:
    # Wide enough against its image that the image itself does not matter.
    vae, latents = random_vae(32, 64, 128, 128, groups=16, layers=1), latents_of(1, 4, 16, 16)
    decoder = ChunkedDecoder(vae)
    with LiveBytes() as whole:
        vae.decode(latents)
    with LiveBytes() as banded:
        decoder.decode(latents, 8)
    assert banded.peak <= whole.peak / 2
    assert banded.now <= whole.now + latents.nbytes * 64


class OddConvolution(nn.Conv2d):
    pass


def put(path: str, value: object) -> Callable[[Any], None]:
    """Sets what a path leads to."""
    *parents, name = path.split(".")
    return lambda vae: setattr(attrgetter(".".join(parents))(vae), name, value)


UP = "decoder.up_blocks"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda vae: vae.enable_tiling(), "vae: use_tiling"),
        (lambda vae: vae.decoder.conv_in.register_forward_hook(print), "decoder.conv_in: it has hooks"),
        (put(f"{UP}.1.resnets.0.conv1", OddConvolution(8, 8, 3)), f"{UP}.1.resnets.0.conv1: it is OddConvolution"),
        (put(f"{UP}.0.upsamplers.0.conv.stride", (2, 2)), rf"{UP}.0.upsamplers.0.conv: stride is \(2, 2\)"),
        (put("decoder.mid_block.resnets.1.nonlinearity", nn.Mish()), "mid_block.resnets.1.nonlinearity: it is Mish"),
        (put("decoder.conv_norm_out", nn.InstanceNorm2d(4)), "decoder.conv_norm_out: it is InstanceNorm2d"),
        (put(f"{UP}.0.resnets.0.time_embedding_norm", "scale_shift"), "time_embedding_norm is 'scale_shift'"),
        (lambda vae: vae.decoder.up_blocks.__setitem__(0, nn.Identity()), f"{UP}.0: it is Identity"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change: Callable[[Any], None], named: str) -> None:
    vae = random_vae(4, 8, layers=1)
    change(vae)
    with pytest.raises(NotChunkable, match=named):
        ChunkedDecoder(vae)
