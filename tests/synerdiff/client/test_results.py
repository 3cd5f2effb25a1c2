"""Typed results: pictures that open and save, events that say what they mean, errors that keep their kind."""

import io
from pathlib import Path

import grpc
import pytest
from PIL import Image

from synerdiff.client.results import GeneratedImage, Progress, event_from_pb
from synerdiff.errors import Cancelled, DeadlineExceeded, SynerDiffError
from synerdiff.requests import ImageFormat
from synerdiff.v1 import images_pb2


def png(color: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 8), color).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def image() -> GeneratedImage:
    return GeneratedImage(0, 7, 16, 8, ImageFormat.PNG, png(), flagged=False)


def test_pil_is_the_picture(image: GeneratedImage) -> None:
    assert image.pil.size == (16, 8)
    assert image.pil.getpixel((3, 3)) == (200, 30, 40)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a"])
def test_save_writes_the_bytes_as_they_came(image: GeneratedImage, tmp_path: Path, name: str) -> None:
    assert image.save(tmp_path / name).read_bytes() == image.data


def test_save_encodes_anew_for_another_format(image: GeneratedImage, tmp_path: Path) -> None:
    with Image.open(image.save(str(tmp_path / "a.jpg"))) as saved:
        assert (saved.format, saved.size) == ("JPEG", (16, 8))


def test_save_refuses_a_suffix_that_is_no_image(image: GeneratedImage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.docx"):
        image.save(tmp_path / "a.docx")
    assert not list(tmp_path.iterdir())


def test_the_image_bytes_stay_out_of_repr(image: GeneratedImage) -> None:
    assert len(repr(image)) < 200


def test_a_preview_opens_and_none_is_none() -> None:
    assert Progress("j", 1, 0, 1, 2, b"").preview is None
    preview = Progress("j", 1, 0, 1, 2, png()).preview
    assert preview is not None
    assert preview.size == (16, 8)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded), (grpc.StatusCode.INTERNAL, SynerDiffError)],
)
def test_a_failed_job_raises_the_error_of_its_code(code: grpc.StatusCode, kind: type[SynerDiffError]) -> None:
    pb = images_pb2.GenerateEvent(job_id="j1", failed=images_pb2.Failed(code=code.value[0], message="too slow"))
    with pytest.raises(kind, match="job j1 failed: too slow") as caught:
        event_from_pb(pb)
    assert caught.value.code is code


def test_a_cancelled_job_raises_cancelled() -> None:
    pb = images_pb2.GenerateEvent(job_id="j1", cancelled=images_pb2.Cancelled(reason="enough"))
    with pytest.raises(Cancelled, match="job j1 was cancelled: enough"):
        event_from_pb(pb)


def test_an_event_of_a_newer_server_is_passed_over() -> None:
    assert event_from_pb(images_pb2.GenerateEvent(job_id="j1", sequence=3)) is None
