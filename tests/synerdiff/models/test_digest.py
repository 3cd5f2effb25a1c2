"""The digest of a model and of its components: what changes them, and what does not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from synerdiff.models.digest import model_digest, module_digest, weights_digest
from synerdiff.models.layout import ModelLoadError, read_layout
from synerdiff.models.loading import load_unet_side, load_vae_side
from tests.waiting import HANG_S

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def original(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["sd1"]


@pytest.fixture
def model(copy_of: Callable[[str], Path]) -> Path:
    return copy_of("sd1")


def digest(path: Path) -> str:
    return model_digest(read_layout(path))


def _widen(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, path / UNET_WEIGHTS)


def _halve(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path / UNET_WEIGHTS)


def _train(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, path / UNET_WEIGHTS, {"format": "pt"})


def _configure(path: Path) -> None:
    config = path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"act_fn"', '"other"'))


def _rename(path: Path) -> None:
    (path / UNET_WEIGHTS).rename(path / "unet" / "diffusion_pytorch_model.fp16.safetensors")


@pytest.mark.parametrize("change", [_widen, _halve, _train, _configure, _rename])
def test_another_model_has_another(original: Path, model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    assert digest(model) != digest(original)


def test_where_it_lies_and_what_is_written_beside_it_do_not_change_it(original: Path, model: Path) -> None:
    (model / "README.md").write_text("a card")
    (model / "unet" / "notes.txt").write_text("notes")
    assert digest(model) == digest(original)
    assert len(digest(model)) == 64


def test_weights_that_cannot_be_read_are_refused_by_name(model: Path) -> None:
    weights = model / UNET_WEIGHTS
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model.safetensors"):
        digest(model)


def test_a_cut_header_is_no_crash(model: Path, original: Path) -> None:
    (model / UNET_WEIGHTS).write_bytes(b"abc")
    assert digest(model) != digest(original)


def module_digest_of(path: Path, component: str) -> str:
    if component == "unet":
        return module_digest(load_unet_side(path, torch.float32).unet)
    return module_digest(load_vae_side(path, torch.float32).vae)


@pytest.mark.parametrize("change", [_halve, _train])
def test_other_weights_in_memory_have_another(original: Path, model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    assert module_digest_of(model, "unet") != module_digest_of(original, "unet")
    assert module_digest_of(model, "vae") == module_digest_of(original, "vae")


def test_any_bit_of_the_weights_and_of_the_config_is_part_of_it(original: Path, model: Path) -> None:
    weights = model / UNET_WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert module_digest_of(model, "unet") != module_digest_of(original, "unet")
    weights.write_bytes(whole)
    assert module_digest_of(model, "unet") == module_digest_of(original, "unet")
    config = model / "unet" / "config.json"
    config.write_text(config.read_text().replace('"act_fn": "silu"', '"act_fn": "gelu"'))
    assert module_digest_of(model, "unet") != module_digest_of(original, "unet")


def test_how_weights_lie_is_no_part_of_it_but_what_they_are_is(original: Path) -> None:
    unet = load_unet_side(original, torch.float32).unet
    found = module_digest(unet)
    assert module_digest(unet.to(memory_format=torch.channels_last)) == found
    assert module_digest(unet.to(torch.bfloat16)) != found


def test_a_sides_digest_is_the_same_for_whoever_reads_it_and_whatever_it_has_encoded(
    original: Path, model: Path
) -> None:
    side = load_unet_side(original, torch.float32)
    side.encode(["a cat", "a very long prompt " * 40])
    assert weights_digest(side) == weights_digest(load_unet_side(model, torch.float32))
    assert weights_digest(load_vae_side(original, torch.float32)) == weights_digest(load_vae_side(model, torch.float32))


def _another_scheduler(path: Path) -> None:
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))


def _another_word(path: Path) -> None:
    vocabulary = path / "tokenizer" / "tokenizer.json"
    text = vocabulary.read_text()
    told = json.loads(text)
    words = told["model"]["vocab"]
    first, second = sorted(words)[300:302]
    words[first], words[second] = words[second], words[first]
    vocabulary.write_text(json.dumps(told))


@pytest.mark.parametrize("change", [_train, _another_scheduler, _another_word])
def test_all_that_a_unet_worker_draws_with_is_part_of_its_digest(
    original: Path, model: Path, change: Callable[[Path], None]
) -> None:
    change(model)
    assert weights_digest(load_unet_side(model, torch.float32)) != weights_digest(
        load_unet_side(original, torch.float32)
    )


def test_what_is_served_outlives_its_files(model: Path) -> None:
    """Overwritten in place, then cut short: in a process of its own, which a read of a cut mapping would end."""
    done = subprocess.run((sys.executable, "-c", _OUTLIVES, str(model)), capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, (done.returncode, done.stderr)


_OUTLIVES = """
import sys
from pathlib import Path
import torch
from synerdiff.models.digest import weights_digest
from synerdiff.models.loading import load_unet_side, load_vae_side

def drawn():
    with torch.inference_mode():
        embeds = unet_side.encode(["a cat"])
        conditioning = unet_side.conditioning(embeds, 64, 64)
        latents = unet_side.predict(torch.ones(1, 4, 8, 8), torch.ones(1), conditioning)
        return latents, torch.from_numpy(vae_side.decode(torch.ones(1, 4, 8, 8)))

model = Path(sys.argv[1])
unet_side, vae_side = load_unet_side(model, torch.float32), load_vae_side(model, torch.float32)
digests = weights_digest(unet_side), weights_digest(vae_side)
before = drawn()
files = list(model.glob("*/*.safetensors"))
for path in files:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
assert all(map(torch.equal, before, drawn())), "overwritten weights are served"
for path in files:
    path.open("r+b").truncate(16)
assert all(map(torch.equal, before, drawn())), "cut weights are served"
assert digests == (weights_digest(unet_side), weights_digest(vae_side))
"""


def test_weights_that_change_while_they_are_read_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = UNet2DConditionModel.from_pretrained.__func__

    def slowly(cls: Any, *arguments: Any, **options: Any) -> Any:
        found = read(cls, *arguments, **options)
        _train(model)
        return found

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", classmethod(slowly))
    with pytest.raises(ModelLoadError, match="unet changed while it was read"):
        load_unet_side(model, torch.float32)
