"""The alignment score of evaluate.py, for `python -m services.unet_worker.fidelity --score models/emoji/score.py`.

python score.py    prints the prompts that it knows, one a line

The pictures that data.py makes are looked for in $EMOJI_WORK, or in `work` beside this file.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import article
from nearest import NearestPictures
from pictures import load_pictures, read_subset

HERE = Path(__file__).parent
CORE = HERE / "core.txt"


def score(images: np.ndarray, prompts: Sequence[str]) -> float:
    """The share, in percent, of pictures [n, 128, 128, 3] uint8 whose nearest emoji is the one of their prompt."""
    nearest, meta = _references()
    index = {_prompt(emoji["label"]): place for place, emoji in enumerate(meta)}
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    ranks, _ = nearest.ranks(pictures, [index[prompt] for prompt in prompts])
    return 100 * (ranks == 0).float().mean().item()


@cache
def _references() -> tuple[NearestPictures, list[dict[str, Any]]]:
    rgba, meta = load_pictures(_work())
    return NearestPictures(rgba), meta


def _work() -> Path:
    return Path(os.environ.get("EMOJI_WORK", HERE / "work"))


def _prompt(label: str) -> str:
    return article(label).lower()


def main() -> None:
    """Print the prompts of the emoji that the model was trained on most."""
    _, meta = load_pictures(_work())
    for index in read_subset(CORE, meta):
        print(_prompt(meta[index]["label"]))


if __name__ == "__main__":
    main()
