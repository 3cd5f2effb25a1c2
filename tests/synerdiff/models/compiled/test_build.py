"""A package made by the real compiler, of a tiny UNet that takes added conditions: once for all tests here."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from redis.asyncio import Redis
from structlog.testing import capture_logs
from torch import Tensor
from torch._inductor import cpu_vec_isa

from synerdiff.models.compiled.background import BackgroundCompiler
from synerdiff.models.compiled.build import CompiledDiffers, _check
from synerdiff.models.compiled.calls import MOST_ROWS
from synerdiff.models.compiled.components import CompiledUnet, compile_subject
from synerdiff.models.compiled.exported import conditioning_of, unet_inputs
from synerdiff.models.compiled.store import CompileSubject, PackageStore, load_package
from synerdiff.models.family import UnetSide
from synerdiff.models.loading import load_unet_side
from synerdiff.redis_process import RedisProcess
from synerdiff.registry import WorkerRegistry
from synerdiff.settings import load
from synerdiff.worker_settings import WorkerSettings
from tests.reference import exact_call
from tests.rounding import assert_rounded
from tests.services.worker_processes import announced, worker_process
from tests.tiny_models import tiny_model

COMPILER = os.environ.get("CXX", "g++")
# Compiling takes a minute of one core, at the lowest priority.
COMPILE_LIMIT_S = 1000.0

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler ({COMPILER})"),
    pytest.mark.timeout(1200),
]

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Built:
    """A model, the package of its UNet, and where that was published."""

    model: Path
    side: UnetSide
    subject: CompileSubject
    directory: Path
    package: Call

    @property
    def path(self) -> Path:
        return self.directory / self.subject.file_name


def small_sdxl(path: Path) -> Path:
    """SDXL with the smallest UNet that has attention, added conditions, a downsampler and an upsampler."""
    tiny_model("sdxl", path)
    config = UNet2DConditionModel.load_config(path / "unet")
    small = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "transformer_layers_per_block": 1,
    }
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config | small)
    shutil.rmtree(path / "unet")
    unet.save_pretrained(path / "unet")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    model = small_sdxl(tmp_path_factory.mktemp("compiled") / "model")
    side = load_unet_side(model, torch.float32)
    subject = compile_subject("unet", model, side)
    # Several pytest processes want the same package: one makes it, and the others wait.
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    directory = root / "compiled packages"
    with capture_logs() as logs:
        (package,) = packages(directory, subject)
    assert [log["event"] for log in logs] == ["compiled"]
    return Built(model, side, subject, directory, package)


@pytest.fixture
def no_compiler(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing can be compiled."""
    monkeypatch.setenv("CXX", "/nowhere/g++")


def compiler_of(directory: Path) -> BackgroundCompiler:
    kept = ["--compile-cache", str(directory), "--compile-limit-s", str(COMPILE_LIMIT_S)]
    return BackgroundCompiler(load(WorkerSettings, ["--compile", "wait", *kept]))


def packages(directory: Path, subject: CompileSubject) -> list[Call]:
    got: list[Call] = []
    with closing(compiler_of(directory)) as compiler:
        compiler.request(subject, got.append)
        compiler.wait()
    return got


def inputs_unlike_the_examples(side: UnetSide, rows: int) -> tuple[Tensor, ...]:
    """Every row with a timestep, a prompt and conditions of its own."""
    draw = torch.Generator().manual_seed(1000 + rows)
    latents, timesteps, hidden, pooled, sizes = unet_inputs(side, (4, 8, 8), rows)
    return (
        torch.randn(latents.shape, generator=draw),
        torch.rand(timesteps.shape, generator=draw) * 999,
        hidden + torch.randn(hidden.shape, generator=draw),
        pooled + torch.randn(pooled.shape, generator=draw),
        sizes + torch.randint(-32, 32, sizes.shape, generator=draw),
    )


def as_the_model_is_called(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    latents, timesteps, hidden, pooled, sizes = inputs
    return latents, timesteps, hidden, {"text_embeds": pooled, "time_ids": sizes}


@pytest.mark.parametrize("rows", [1, 2, 3, 16, MOST_ROWS, MOST_ROWS + 7])
def test_a_package_answers_as_the_model_does(built: Built, rows: int) -> None:
    inputs = inputs_unlike_the_examples(built.side, rows)
    exact = exact_call(built.side.unet, *as_the_model_is_called(inputs))
    eager = built.side.predict(inputs[0], inputs[1], conditioning_of(*inputs[2:]))
    assert_rounded(built.package(*inputs), exact, eager)


def test_every_input_counts(built: Built) -> None:
    inputs = inputs_unlike_the_examples(built.side, 4)
    answer = built.package(*inputs)
    others = inputs_unlike_the_examples(built.side, 5)
    for place in range(len(inputs)):
        changed = [*inputs]
        changed[place] = others[place][:4]
        exact = exact_call(built.side.unet, *as_the_model_is_called(tuple(changed)))
        eager = built.side.predict(changed[0], changed[1], conditioning_of(*changed[2:]))
        assert_rounded(built.package(*changed), exact, eager)
        assert not torch.equal(built.package(*changed), answer)


def test_only_the_package_is_left(built: Built) -> None:
    assert sorted(path.name for path in built.directory.iterdir()) == ["lock", built.path.name]


def test_what_a_package_is_unpacked_to_is_gone_while_it_computes(built: Built) -> None:
    mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    unpacked = {name.removesuffix(" (deleted)") for name in mapped if "aotinductor_" in name}
    assert unpacked, "a package is not mapped from where it is looked for"
    folders = {parent for name in unpacked for parent in Path(name).parents if parent.name.startswith("aotinductor_")}
    assert folders
    assert not any(folder.exists() for folder in folders)


def test_loading_tries_out_no_compiler(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", ran)
    for tried in (cpu_vec_isa.valid_vec_isa_list, vars(cpu_vec_isa.VecISA)["_VecISA__bool__impl"]):
        tried.cache_clear()
    load_package(built.path)


@pytest.mark.usefixtures("no_compiler")
def test_a_second_request_is_served_from_the_store(built: Built) -> None:
    with capture_logs() as logs:
        (package,) = packages(built.directory, built.subject)
    assert [log["event"] for log in logs] == ["compiled"]
    inputs = inputs_unlike_the_examples(built.side, 2)
    assert torch.equal(package(*inputs), built.package(*inputs))


@pytest.mark.usefixtures("no_compiler")
def test_a_worker_computes_with_the_package(built: Built) -> None:
    with closing(compiler_of(built.directory)) as compiler:
        unet = CompiledUnet(built.side, compiler.requests_like(lambda: built.subject))
        compiler.wait()
    assert unet.execution == "compiled"
    inputs = inputs_unlike_the_examples(built.side, 3)
    exact = exact_call(built.side.unet, *as_the_model_is_called(inputs))
    eager = built.side.predict(inputs[0], inputs[1], conditioning_of(*inputs[2:]))
    answer = unet.prepared(inputs[0], inputs[1], conditioning_of(*inputs[2:]))()
    assert_rounded(answer, exact, eager)
    assert torch.equal(answer, built.package(*inputs))
    assert unet.execution == "compiled"


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_package_that_was_cut_is_removed_and_the_model_goes_on(built: Built, tmp_path: Path, kept: float) -> None:
    cut = PackageStore(tmp_path / "store").directory / built.subject.file_name
    content = built.path.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with capture_logs() as logs, closing(compiler_of(cut.parent)) as compiler:
        unet = CompiledUnet(built.side, compiler.requests_like(lambda: built.subject))
        compiler.wait()
    assert [log["log_level"] for log in logs] == ["warning"]
    assert not cut.exists()
    assert unet.execution == "eager"
    inputs = inputs_unlike_the_examples(built.side, 2)
    eager = built.side.predict(inputs[0], inputs[1], conditioning_of(*inputs[2:]))
    assert torch.equal(unet.prepared(inputs[0], inputs[1], conditioning_of(*inputs[2:]))(), eager)


async def test_a_worker_process_finds_the_package_and_says_that_it_serves_with_it(
    built: Built, redis: Redis, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    flags = ["--model", str(built.model), "--dtype", "float32", "--redis-url", redis_server.url, "--pool", "test"]
    compiled = ["--compile", "wait", "--compile-cache", str(built.directory)]
    async with worker_process("services.unet_worker", *flags, *compiled):
        assert (await announced(WorkerRegistry(redis))).execution == "compiled"


@pytest.mark.parametrize("wrong", [lambda answer: answer * 1.01, lambda answer: answer * torch.nan, torch.zeros_like])
def test_a_package_that_answers_otherwise_is_found_out(built: Built, wrong: Call) -> None:
    def package(*inputs: Tensor) -> Tensor:
        return wrong(built.package(*inputs))

    def model(*inputs: Tensor) -> Tensor:
        return built.side.predict(inputs[0], inputs[1], conditioning_of(*inputs[2:]))

    def inputs_of(rows: int) -> tuple[Tensor, ...]:
        return inputs_unlike_the_examples(built.side, rows)

    _check(model, built.package, inputs_of)
    with pytest.raises(CompiledDiffers, match="at 1 rows"):
        _check(model, package, inputs_of)
