"""UNet and VAE as a worker calls them: for which shapes a package is asked, and what calls answer before and after."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from synerdiff.models.compiled import rehearsal
from synerdiff.models.compiled.calls import CompiledCall
from synerdiff.models.compiled.components import CompiledUnet, CompiledVae, LatentShape
from synerdiff.models.compiled.exported import ExportedVae, conditioning_of, exported_unet, unet_inputs, vae_inputs
from synerdiff.models.family import UnetSide, VaeSide
from tests.reference import exact_call
from tests.rounding import assert_rounded
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.waiting import VirtualTime

Call = Callable[..., Tensor]
CALLS_WORTH_COMPILING = 200


class Asked:
    """The packages that were asked for, in order; `answer` gives one of them."""

    def __init__(self, made_before: bool = False) -> None:
        self.shapes: list[LatentShape] = []
        self._made_before = made_before
        self._installs: list[Callable[[Call], None]] = []

    def __call__(self, shape: LatentShape, install: Callable[[Call], None]) -> bool:
        self.shapes.append(shape)
        self._installs.append(install)
        return self._made_before

    def answer(self, shape: LatentShape, call: Call) -> None:
        self._installs[self.shapes.index(shape)](call)


@dataclass(frozen=True)
class Counted:
    """A call without gradients, as a package is one, that counts how often it was made."""

    call: Call
    rows: list[int]

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.rows.append(len(inputs[0]))
        with torch.no_grad():
            return self.call(*inputs)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def quick_side(unet_side: UnetSide) -> UnetSide:
    """A side whose UNet answers its latents."""

    def unet(latents: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        return (latents,)

    unet.config = unet_side.unet.config  # type: ignore[attr-defined]
    return replace(unet_side, unet=unet)


def predict(unet: CompiledUnet, side: UnetSide, shape: LatentShape, rows: int = 1) -> Tensor:
    latents, timesteps, *told = unet_inputs(side, shape, rows)
    return unet.prepared(latents, timesteps, conditioning_of(*told))()


def call_often(unet: CompiledUnet, side: UnetSide, shape: LatentShape, times: int) -> None:
    latents, timesteps, *told = unet_inputs(side, shape, 1)
    for _ in range(times):
        unet.prepared(latents, timesteps, conditioning_of(*told))()


def test_the_native_shape_is_asked_for_at_once(unet_side: UnetSide, vae_side: VaeSide) -> None:
    for component, side in ((CompiledUnet, unet_side), (CompiledVae, vae_side)):
        asked = Asked()
        made = component(side, asked)  # type: ignore[arg-type]
        assert asked.shapes == [(4, 8, 8)]
        assert made.execution == "eager"


def test_another_shape_is_asked_for_once_when_it_was_called_often(quick_side: UnetSide, asked: Asked) -> None:
    unet = CompiledUnet(quick_side, asked)
    call_often(unet, quick_side, (4, 8, 8), 2 * CALLS_WORTH_COMPILING)
    assert asked.shapes == [(4, 8, 8)], "the native shape is asked for once"
    call_often(unet, quick_side, (4, 16, 8), CALLS_WORTH_COMPILING - 1)
    assert asked.shapes == [(4, 8, 8)]
    call_often(unet, quick_side, (4, 16, 8), 1)
    assert asked.shapes == [(4, 8, 8), (4, 16, 8)]
    call_often(unet, quick_side, (4, 16, 8), 2 * CALLS_WORTH_COMPILING)
    assert asked.shapes == [(4, 8, 8), (4, 16, 8)]


def test_at_most_three_other_shapes_are_asked_for(quick_side: UnetSide, asked: Asked) -> None:
    unet = CompiledUnet(quick_side, asked)
    others = [(4, 8, 8 * wide) for wide in range(2, 7)]
    for shape in others:
        call_often(unet, quick_side, shape, CALLS_WORTH_COMPILING)
    assert asked.shapes == [(4, 8, 8), *others[:3]]


def test_a_decode_of_another_shape_is_asked_for_too(vae_side: VaeSide, asked: Asked) -> None:
    quick = replace(
        vae_side,
        vae=SimpleNamespace(
            config=vae_side.vae.config, dtype=torch.float32, decode=lambda latents, return_dict: (latents[:, :3],)
        ),
    )
    vae = CompiledVae(quick, asked)
    for _ in range(CALLS_WORTH_COMPILING):
        vae.decode(torch.zeros(1, 4, 8, 16))
    assert asked.shapes == [(4, 8, 8), (4, 8, 16)]


def test_execution_is_that_of_the_native_shape(quick_side: UnetSide, asked: Asked) -> None:
    unet = CompiledUnet(quick_side, asked)
    call_often(unet, quick_side, (4, 16, 8), CALLS_WORTH_COMPILING)
    asked.answer((4, 16, 8), lambda latents, *_: latents)
    assert unet.execution == "eager"
    asked.answer((4, 8, 8), lambda latents, *_: latents)
    assert unet.execution == "compiled"


@pytest.mark.parametrize("made_before", [False, True])
def test_eager_calls_are_not_rehearsed_where_a_package_is_about_to_come(
    quick_side: UnetSide, made_before: bool
) -> None:
    eager = Counted(lambda latents, *_: latents, [])
    unet = CompiledUnet(quick_side, Asked(made_before), most_rows=4)
    unet._eager = eager  # type: ignore[method-assign]
    unet.rehearse()
    assert eager.rows == ([] if made_before else [2, 4, 1, 3])


def test_a_package_is_offered_when_some_sizes_were_rehearsed_and_the_rest_then(
    quick_side: UnetSide, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualTime()
    monkeypatch.setattr(rehearsal, "time", clock)
    unet, offered = CompiledUnet(quick_side, asked, most_rows=12), list[tuple[int, str]]()

    def takes_a_while(latents: Tensor, *_: Tensor) -> Tensor:
        offered.append((len(latents), unet.execution))
        clock.sleep(0.45)
        return latents

    asked.answer((4, 8, 8), takes_a_while)
    assert [rows for rows, _ in offered] == [2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11]
    assert [execution for _, execution in offered] == ["eager"] * 7 + ["compiled"] * 5, "3 s of 0.45 s each, then all"


def test_a_package_that_fails_leaves_it_eager(unet_side: UnetSide, asked: Asked) -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    unet = CompiledUnet(unet_side, asked)
    expected = predict(unet, unet_side, (4, 8, 8))
    asked.answer((4, 8, 8), broken)
    with capture_logs() as logs:
        for _ in range(2):
            assert torch.equal(predict(unet, unet_side, (4, 8, 8)), expected)
    assert [log["reason"] for log in logs] == ["no kernel"]
    assert unet.execution == "eager"


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_compiled_unet_calls_answer_as_eager_ones(unet_side: UnetSide, asked: Asked, rows: int) -> None:
    unet, package = CompiledUnet(unet_side, asked), Counted(exported_unet(unet_side.unet), [])
    latents, timesteps, *told = unet_inputs(unet_side, (4, 8, 8), rows)
    conditioning = conditioning_of(*told)
    # As callers may have them.
    latents, timesteps = latents.double(), timesteps.long()
    exact = exact_call(unet_side.unet, latents.float(), timesteps, conditioning.hidden, conditioning.added)
    eager = unet_side.predict(latents, timesteps, conditioning)
    assert_rounded(unet.prepared(latents, timesteps, conditioning)(), exact, eager)
    assert package.rows == []
    asked.answer((4, 8, 8), CompiledCall(package))
    for _ in range(2):  # either way, as they take turns
        answer = unet.prepared(latents, timesteps, conditioning)()
        assert answer.dtype == torch.float32
        assert_rounded(answer, exact, eager)
    assert sum(package.rows) == rows


def test_a_shape_without_a_package_is_computed_eagerly(unet_side: UnetSide, asked: Asked) -> None:
    unet, package = CompiledUnet(unet_side, asked), Counted(exported_unet(unet_side.unet), [])
    asked.answer((4, 8, 8), package)
    latents, timesteps, *told = unet_inputs(unet_side, (4, 8, 16), 2)
    expected = unet_side.predict(latents, timesteps, conditioning_of(*told))
    assert torch.equal(unet.prepared(latents, timesteps, conditioning_of(*told))(), expected)
    assert package.rows == []


def test_compiled_decodes_give_the_pictures_of_eager_ones(vae_side: VaeSide, asked: Asked) -> None:
    vae, package = CompiledVae(vae_side, asked), Counted(ExportedVae(vae_side.vae).eval(), [])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = vae_side.decode(latents)
    assert expected.std() > 0
    assert np.array_equal(vae.decode(latents), expected)
    asked.answer((4, 8, 8), package)
    for _ in range(2):
        assert np.array_equal(vae.decode(latents), expected)
    assert package.rows == [2]
    assert vae.execution == "compiled"


def test_examples_are_the_same_for_the_same_rows_and_of_the_models_shapes(
    unet_side: UnetSide, vae_side: VaeSide
) -> None:
    once, again = unet_inputs(unet_side, (4, 8, 16), 3), unet_inputs(unet_side, (4, 8, 16), 3)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    assert {len(one) for one in once} == {3}
    assert once[0].shape == (3, 4, 8, 16)
    assert len(once) == (5 if unet_side.family.name == "sdxl" else 3)
    (latents,) = vae_inputs(vae_side, (4, 8, 16), 3)
    assert latents.shape == (3, 4, 8, 16)
    assert torch.equal(latents, vae_inputs(vae_side, (4, 8, 16), 3)[0])


def test_example_inputs_are_made_where_the_model_is(unet_side: UnetSide) -> None:
    gpu = FakeGpu()
    side = replace(unet_side, compute=gpu)
    inputs = unet_inputs(side, side.latent_shape(*side.native_size), 2)
    assert gpu.asked == ["upload"] * (len(inputs) - 1), "prompts are encoded there"
