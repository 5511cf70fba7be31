"""Memory of a GPU that does not come back after its engine has ended; the driver is played."""

import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from bitinglip.worker import hardware
from bitinglip.worker.hardware import Gpu, GpuMemoryWatch, GpuUnreadableError, read_used_bytes

GIB = 2**30
GPUS = [Gpu(0, "GPU-0", "H200", 140 * GIB), Gpu(1, "GPU-1", "H200", 140 * GIB)]
NOBODY = 2**31 - 1


class NVMLError(Exception):
    """As nvidia-ml-py names it."""


class Driver:
    """Says one after the other what is in use; the last answer stays."""

    def __init__(self, *answers: list[int] | None) -> None:
        self._answers = list(answers)
        self.asked = 0

    def __call__(self, gpus: Sequence[Gpu]) -> list[int]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise GpuUnreadableError("the GPU is lost")
        return answer


@pytest.fixture(autouse=True)
def busy_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "POLL_SECONDS", 0.001)


def make_watch(driver: Driver, *, patience_seconds: float = 0.02, gpus: Sequence[Gpu] = GPUS) -> GpuMemoryWatch:
    return GpuMemoryWatch(gpus, driver, patience_seconds, tolerance_bytes=GIB)


def test_memory_that_is_back_is_no_problem() -> None:
    driver = Driver([5 * GIB, 0], [6 * GIB, GIB])

    assert make_watch(driver).check() is None
    assert driver.asked == 2


def test_memory_may_take_a_while_to_come_back() -> None:
    driver = Driver([0, 0], [0, 100 * GIB], [0, 50 * GIB], None, [0, 0])

    assert make_watch(driver, patience_seconds=60).check() is None


def test_memory_that_stays_is_told_of_with_its_gpu() -> None:
    problem = make_watch(Driver([GIB, GIB], [GIB, 12 * GIB])).check()

    assert problem is not None
    assert problem.startswith("GPU 1 (GPU-1) still holds 11.8 GB 0.02 s after its engine ended")


def test_a_gpu_that_the_driver_has_lost_is_told_of() -> None:
    problem = make_watch(Driver([0, 0], None)).check()

    assert problem is not None
    assert "the GPU is lost" in problem


def test_without_a_gpu_nothing_is_asked() -> None:
    driver = Driver([])

    assert make_watch(driver, gpus=[]).check() is None
    assert driver.asked == 0


def test_what_running_processes_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_process(pid: int, used: int | None) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, usedGpuMemory=used)

    def list_processes(handle: str) -> list[SimpleNamespace]:
        if handle == "GPU-1":
            raise NVMLError("not supported")
        return [make_process(os.getpid(), 30 * GIB), make_process(os.getppid(), None), make_process(NOBODY, 10 * GIB)]

    driver = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=str,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=140 * GIB, used=41 * GIB),
        nvmlDeviceGetComputeRunningProcesses=list_processes,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)

    assert read_used_bytes(GPUS) == [11 * GIB, 41 * GIB]


@pytest.mark.parametrize("away", ["library", "driver"])
def test_used_memory_is_unreadable_without_a_driver(monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    def fail() -> None:
        raise NVMLError("driver/library version mismatch")

    driver = SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail) if away == "driver" else None
    monkeypatch.setitem(sys.modules, "pynvml", driver)

    with pytest.raises(GpuUnreadableError):
        read_used_bytes(GPUS)
