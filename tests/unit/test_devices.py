"""What a driver that is made up shows of GPUs, and what an experiment's keys mean on them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from entangled import devices
from entangled.errors import DataError


class Driver:
    """The five functions of libcuda that are asked, for GPUs of so many MiB."""

    def __init__(self, *memory_mib: int, init: int = 0) -> None:
        self._memory, self._init = memory_mib, init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._init

    def cuDeviceGetCount(self, count) -> int:  # noqa: N802
        count._obj.value = len(self._memory)
        return 0

    def cuDeviceGet(self, device, place: int) -> int:  # noqa: N802
        device._obj.value = 100 + place
        return 0

    def cuDeviceGetName(self, name, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = f"card {device.value - 100}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, device: ctypes.c_int) -> int:  # noqa: N802
        memory._obj.value = self._memory[device.value - 100] * devices.MIB
        return 0


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_driver", lambda: Driver(8000, 16000))


@pytest.mark.usefixtures("two")
def test_gpus_are_listed_in_the_order_in_which_frameworks_number_them() -> None:
    assert devices.gpus().devices == (devices.Gpu("card 0", 8000), devices.Gpu("card 1", 16000))


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("memory", "gpu", "mib"), [(0.5, 0, 4000), (0.5, 1, 8000), (1.0, 0, 8000), (4096, 1, 4096), (1 / 3, 0, 2666)]
)
def test_memory_is_a_share_up_to_one_and_mib_above(memory: float, gpu: int, mib: int) -> None:
    assert devices.memory_mib(memory, gpu) == mib


@pytest.mark.usefixtures("two")
def test_what_a_gpu_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"gpu:0 is too small \(expected 8001 MiB of memory; got 8000 MiB\)"):
        devices.memory_mib(8001, 0)
    with pytest.raises(DataError, match="there is no gpu:2 here: CUDA shows 2 GPUs"):
        devices.memory_mib(0.5, 2)


def test_where_there_are_no_gpus_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError

    for driver, why in (
        (missing, "no NVIDIA driver is installed here"),
        (lambda: Driver(init=100), "shows no GPU (cuInit: error 100)"),
        (Driver, "CUDA_VISIBLE_DEVICES"),
    ):
        monkeypatch.setattr(devices, "_driver", driver)
        assert devices.gpus().devices == ()
        assert why in devices.gpus().why_none


@pytest.mark.parametrize(("limit", "cpus"), [("max 100000", 3), ("150000 100000", 1), ("900000 100000", 3), ("", 3)])
def test_cpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, limit: str, cpus: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 4, 7}, raising=False)
    monkeypatch.setattr(Path, "read_text", lambda *_: limit)
    assert devices.cpus() == cpus
