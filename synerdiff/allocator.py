"""How a worker's C library keeps memory that torch has freed.

A step frees and takes the same activations over and over. glibc gives large blocks back to the kernel at once, which
then zeroes fresh pages for the next operator: some thousand page faults a step. So: keep them.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_NEVER_TRIM_BYTES = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20
# Larger blocks, of which there are few, still go back to the kernel.
_MMAP_THRESHOLD_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory, in one arena; False for other libraries. Call before threads that compute start."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = (
        # An arena of its own, as other threads than the first get it, is too small for activations.
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _NEVER_TRIM_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    answers = [mallopt(parameter, value) for parameter, value in wanted]
    return all(answer == 1 for answer in answers)
