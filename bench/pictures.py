"""Pictures [height, width, 3] of levels from 0 to 255, and how far two of them are apart."""

import numpy as np
import numpy.typing as npt

from synerdiff.client import GeneratedImage

Picture = npt.NDArray[np.uint8]


def pixels(image: GeneratedImage) -> Picture:
    return np.asarray(image.pil.convert("RGB"))


def levels(a: Picture, b: Picture) -> int:
    """The largest difference of any pixel."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def psnr_db(a: Picture, b: Picture) -> float:
    """PSNR of two pictures; 99 when they are equal."""
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))
