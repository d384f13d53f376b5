"""What a process can compute on: CPUs, and the GPUs that CUDA would show it. Without any machine-learning framework."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from entangled.errors import DataError

MIB = 2**20


class Gpu(NamedTuple):
    """A GPU by its place, from 0, among those that CUDA shows a process started as this one."""

    name: str
    memory_mib: int


class Gpus(NamedTuple):
    """The GPUs, and where there are none, why."""

    devices: tuple[Gpu, ...]
    why_none: str = ""


def cpus() -> int:
    """How many CPUs this process may use: those that it may run on, or fewer where its control group has a limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.floor(int(quota) / int(period))))


def gpus() -> Gpus:
    """Ask NVIDIA's driver. Sees what TensorFlow, PyTorch and JAX see: CUDA_VISIBLE_DEVICES holds here, too."""
    try:
        return _ask(_driver())
    except OSError:
        return Gpus((), "no NVIDIA driver is installed here (libcuda.so.1)")


def number(device: str) -> int:
    """The GPU that `gpu` or `gpu:N` means.

    >>> number("gpu"), number("gpu:1")
    (0, 1)
    """
    return int(device.partition(":")[2] or 0)


def memory_mib(memory: float, gpu: int) -> int:
    """What an experiment's `memory` means on a GPU of this process.

    Args:
        memory: the share of it up to 1, MiB above that.
        gpu: its number.

    Returns:
        MiB.

    Raises:
        DataError: there is no such GPU, or it has less memory.
    """
    found = gpus()
    if gpu >= len(found.devices):
        raise DataError(
            f"there is no gpu:{gpu} here: CUDA shows {len(found.devices)} GPUs; {found.why_none}".rstrip("; ")
        )
    total = found.devices[gpu].memory_mib
    if memory > total:
        raise DataError(f"gpu:{gpu} is too small", expected=f"{memory:g} MiB of memory", got=f"{total} MiB")
    return math.floor(memory if memory > 1 else memory * total)


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _ask(driver: Any) -> Gpus:
    if (code := driver.cuInit(0)) != 0:
        return Gpus((), f"NVIDIA's driver shows no GPU (cuInit: error {code})")
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    found: list[Gpu] = []
    for place in range(count.value):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
        driver.cuDeviceGet(ctypes.byref(device), place)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        found.append(Gpu(name.value.decode(errors="replace"), memory.value // MIB))
    return Gpus(tuple(found), "" if found else "NVIDIA's driver shows no GPU; is CUDA_VISIBLE_DEVICES empty?")
