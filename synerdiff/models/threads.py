"""CPU threads of torch operations, per Python thread: the computing thread has its share, others keep to one."""

import torch

from synerdiff.host import usable_cores


def limit_torch_threads(count: int) -> None:
    """Let torch operations of the calling thread use `count` CPU threads.

    This reads the number first: a thread's first read copies the process-wide number, so it would overwrite an earlier
    limit with a number that another thread has set in the meantime.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


class ThreadShare:
    """A device thread's CPU threads: `own` (0: torch's number), an item's share, or always `exact` for exact items."""

    def __init__(self, own: int, exact: int = 1) -> None:
        self._own = own or torch.get_num_threads()
        self._exact = exact
        self._taken = 0

    def take(self, share: int, exact: bool = False) -> None:
        """Use `share` threads from now on (0: its own number), but no more than this process has cores."""
        count = self._exact if exact else min(share, usable_cores()) or self._own
        if count != self._taken:
            limit_torch_threads(count)
            self._taken = count
