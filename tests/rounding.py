"""How far fp32 answers may lie apart: measured where a test runs, never read off one machine.

A test has three answers to one question. `exact` is computed in float64, by a way that does not pass through what is
tested. `references` are computed in fp32 by that same way: they are off by what this machine's kernels, their order of
sums and its threads make of fp32. What is `found` in fp32 by the way that is tested may be off by a small multiple of
that.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# A rounded value is off by at most this share of itself.
UNIT = torch.finfo(torch.float32).eps / 2
# A sum of n terms is off by about sqrt(n) units if it is taken one at a time, and by a quarter of that if it is taken
# in the 16 lanes of the widest vectors: 4, and as much again for the luck of the draw.
MULTIPLE = 16.0
# Of the largest value. A bound above it would let answers pass that were computed in half precision.
COARSEST = torch.finfo(torch.float16).eps / 2
# Fewer numbers may be right by chance, and would then say nothing of how far others may be off.
FEWEST = 8
# Of 255. Values that lie apart by no more than this round to the same level or to neighbours.
A_LEVEL = 1


def off(found: Tensor, exact: Tensor) -> float:
    """The largest difference of any element, nan where there is a nan; shapes must be equal."""
    assert found.shape == exact.shape
    return float((found.double() - exact.double()).abs().max())


def rounding(exact: Tensor, *references: Tensor, coarsest: float = COARSEST) -> float:
    """How far an fp32 answer may be off, in any element: MULTIPLE times what the worst of `references` is.

    Without references, or with ones that are exact, a unit of the largest value stands for them.

    Raises AssertionError when that is more than `coarsest` of the largest value, and for references of too few numbers.
    """
    assert exact.dtype == torch.float64
    assert not references or exact.numel() >= FEWEST
    largest = float(exact.abs().max())
    bound = MULTIPLE * max(UNIT * largest, *(off(reference, exact) for reference in references), 0.0)
    assert bound < coarsest * largest, f"a bound of {bound:.1e} for values up to {largest:.1e} would prove nothing"
    return bound


def assert_rounded(found: Tensor, exact: Tensor, *references: Tensor) -> None:
    """That fp32 answers are off by no more than rounding makes them."""
    bound, error = rounding(exact, *references), off(found, exact)
    assert error <= bound, f"off by {error:.2e}, and rounding makes it {bound:.2e} at most"


def assert_same_picture(
    found: npt.NDArray[np.uint8], exact: Tensor, *references: Tensor, coarsest: float = COARSEST
) -> None:
    """That a picture [H, W, 3] is that of fp32 values: `exact` and `references` [H, W, 3] in levels, not yet whole.

    Half a level is the picture's own rounding to whole levels. The rest is a small part of a level (see `rounding`), so
    that any two such pictures are at most A_LEVEL apart.
    """
    bound, error = 0.5 + rounding(exact, *references, coarsest=coarsest), off(torch.tensor(found), exact)
    assert error <= bound, f"off by {error:.3f} levels, and rounding makes it {bound:.3f} at most"
