import threading

import torch

from synerdiff.models.threads import limit_torch_threads
from tests.waiting import HANG_S


def test_each_thread_keeps_its_own_limit() -> None:
    """In the order in which a later thread's limit would otherwise reach an earlier one."""
    seen: dict[str, int] = {}
    first_set, second_set = threading.Event(), threading.Event()

    def first() -> None:
        limit_torch_threads(1)
        first_set.set()
        assert second_set.wait(HANG_S)
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        seen["first"] = torch.get_num_threads()

    def second() -> None:
        assert first_set.wait(HANG_S)
        limit_torch_threads(2)
        second_set.set()
        seen["second"] = torch.get_num_threads()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first": 1, "second": 2}
