"""Fields that do not fit are found when the codec is made, not when a message is on its way."""

from dataclasses import dataclass

import pytest

from synerdiff.plans import DecodedImage, Execution, ItemRef
from synerdiff.v1 import images_pb2, stages_pb2
from synerdiff.wire.codec import codec
from synerdiff.wire.stages import unet_plan_from_pb, unet_tick_done_from_pb


@dataclass(frozen=True)
class Weights:
    kind: str
    digest: str
    colour: str = "blue"


def test_a_field_that_one_side_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"Weights and synerdiff\.v1\.Weights do not both have: colour, workers"):
        codec(Weights, images_pb2.Weights)


def test_what_is_left_out_is_not_written_and_read_as_its_default() -> None:
    to_pb, from_pb = codec(Weights, images_pb2.Weights, leave_out=("colour", "workers"))
    assert to_pb(Weights("unet", "d", "red")) == images_pb2.Weights(kind="unet", digest="d")
    assert from_pb(images_pb2.Weights(kind="unet", digest="d", workers=3)) == Weights("unet", "d")


def test_a_message_that_is_not_set_is_none_and_an_empty_one_is_not() -> None:
    to_pb, from_pb = codec(Execution, stages_pb2.Execution)
    assert from_pb(to_pb(Execution())).after is None
    assert from_pb(to_pb(Execution(after=ItemRef(0, 0)))).after == ItemRef(0, 0)


def test_an_enum_of_a_newer_version_is_refused() -> None:
    _, from_pb = codec(DecodedImage, stages_pb2.DecodedImage)
    with pytest.raises(ValueError, match="99"):
        from_pb(stages_pb2.DecodedImage(task_id="a", format=99))  # type: ignore[arg-type]


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert unet_plan_from_pb(stages_pb2.UnetPlan.FromString(b"\x08\x03\xfa\x07\x01x")).leader_token == 3
    assert unet_tick_done_from_pb(stages_pb2.UnetTickDone(tick=3)).items == ()
