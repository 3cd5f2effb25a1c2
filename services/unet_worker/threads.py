"""CPU threads per Python thread: the step loop has the cores, what runs beside it keeps to one."""

import torch


def limit_torch_threads(count: int) -> None:
    """Let torch operations of the calling thread use `count` CPU threads.

    Asking first matters: a thread takes the process-wide number over when it first asks, so a limit set before that
    would be overwritten by whatever another thread has set in the meantime.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)
