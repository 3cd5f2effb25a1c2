"""Names of picture files, and the picture on a terminal."""

import io
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from synerdiff.client import GeneratedImage
from synerdiff.requests import ImageFormat
from synerdiff_cli.making import Destination, default_path, slug, terminal_picture


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a slice of pizza", "a-slice-of-pizza"),
        ("  Crème brûlée!! ", "creme-brulee"),
        ("../../etc/passwd", "etc-passwd"),
        ("日本", "picture"),
        ("", "picture"),
        ("x" * 200, "x" * 48),
    ],
)
def test_slugs(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@given(st.text())
def test_any_prompt_gives_a_plain_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert name
    assert len(name) <= 48
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert not name.startswith("-")


def test_a_default_name_never_overwrites(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = default_path("a cat", 7, ".png", tmp_path)
        path.touch()
        names.append(path.name)
    assert names == ["a-cat-7.png", "a-cat-7-2.png", "a-cat-7-3.png"]


def test_several_pictures_of_one_name_are_numbered() -> None:
    where = Destination("a cat", output=Path("out/cat.png"))
    images = [GeneratedImage(index, 7, 16, 16, ImageFormat.PNG, b"", False) for index in range(3)]
    names = [str(where.path(image)) for image in images]
    assert names == ["out/cat.png", "out/cat-1.png", "out/cat-2.png"]


def test_the_terminal_picture_shows_two_pixels_in_a_character() -> None:
    picture = Image.new("RGB", (2, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 1, 2, 2))
    text = io.StringIO()
    Console(file=text, force_terminal=True, color_system="truecolor").print(terminal_picture(picture, columns=2))
    first, second, *rest = text.getvalue().splitlines()
    assert rest in ([], [""])
    assert first.count("▀") == second.count("▀") == 2
    assert "38;2;255;0;0;48;2;0;0;255" in first
    assert "38;2;255;0;0;48;2;255;0;0" in second
