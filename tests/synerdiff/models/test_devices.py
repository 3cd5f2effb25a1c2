"""Devices: their hardware's name, their dtypes and threads, and what errors say of them."""

import threading
from pathlib import Path

import pytest
import torch

from synerdiff.host import usable_cores
from synerdiff.models.device import DeviceFailed, Fault, cpu, fault_of, open_device
from synerdiff.models.device.opening import dtype_from_name
from synerdiff.models.threads import limit_torch_threads
from tests.waiting import HANG_S

CPU = open_device("cpu")


def test_a_cpu_is_named_with_the_cores_that_this_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: AMD EPYC   Processor \n\nprocessor\t: 1\nmodel name\t: another\n")
    monkeypatch.setattr(cpu, "_CPU_INFO", info)
    monkeypatch.setattr(cpu, "usable_cores", lambda: 2)
    assert CPU.name == "cpu: AMD EPYC Processor, 2 cores"
    monkeypatch.setattr(cpu, "usable_cores", lambda: 1)
    assert CPU.name == "cpu: AMD EPYC Processor, 1 core"


@pytest.mark.parametrize("text", ["", "processor\t: 0\nBogoMIPS\t: 50\n", "model name\t:\n"])
def test_a_cpu_without_a_name_goes_by_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    monkeypatch.setattr(cpu, "_CPU_INFO", info)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert CPU.name.startswith("cpu: aarch64, ")


def test_this_machine_has_a_name() -> None:
    assert CPU.name.endswith((f"{usable_cores()} cores", f"{usable_cores()} core"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes."),
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_recognised(error: Exception) -> None:
    assert fault_of(error) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ..."),
        RuntimeError("CUDA error: unspecified launch failure"),  # torch before 2.8
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: the MPS client has been terminated by the MPS server"),
        torch.AcceleratorError(
            "CUDA error: the remote procedural call between the MPS server and the MPS client failed"
        ),
        DeviceFailed("said before"),
    ],
)
def test_a_poisoned_context_is_recognised(error: Exception) -> None:
    assert fault_of(error) is Fault.FATAL


def test_a_poisoned_context_is_recognised_by_its_number() -> None:
    error = torch.AcceleratorError("in words that nobody knows yet")
    error.error_code = 719  # type: ignore[attr-defined]
    assert fault_of(error) is Fault.FATAL


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[2]' is invalid for input of size 3"),
        torch.AcceleratorError("CUDA error: invalid argument"),
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
        ValueError("an illegal memory access was encountered, says a prompt"),
    ],
)
def test_other_errors_are_not_the_device_s(error: Exception) -> None:
    assert fault_of(error) is Fault.OTHER


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_dtypes_go_by_name(name: str) -> None:
    assert dtype_from_name(name) == getattr(torch, name)


@pytest.mark.parametrize(
    ("has_amx", "kernels", "dtype"),
    [
        (True, "AVX512", torch.bfloat16),
        (False, "AVX512", torch.float32),
        (True, "AVX2", torch.float32),
        (True, "DEFAULT", torch.float32),
    ],
)
def test_the_dtype_auto_is_bfloat16_only_where_the_cpu_does_it(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, kernels: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert dtype_from_name("auto") == dtype


def test_another_dtype_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'int8' is none of \"auto\", 'float32', 'bfloat16', 'float16'"):
        dtype_from_name("int8")


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
