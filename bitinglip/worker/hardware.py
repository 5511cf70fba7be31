"""The GPUs of this machine, asked of NVIDIA's driver; no torch, no CUDA context."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bitinglip.errors import EngineError

POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        uuid: What CUDA_VISIBLE_DEVICES takes; does not change with the order of devices.
        memory_bytes: In all.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As the `workers` table keeps it."""
        return asdict(self)


def find_gpus() -> list[Gpu]:
    """Every NVIDIA GPU that the driver shows; none where there is no driver or no nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


class GpuUnreadableError(EngineError):
    """The driver does not say how much of a GPU's memory is in use: it has lost the GPU, or is being replaced."""

    code = "gpu_unreadable"

    def __init__(self, reason: object) -> None:
        super().__init__(f"the GPU's memory cannot be read: {reason}; look at nvidia-smi and the kernel's log")


def read_used_bytes(gpus: Sequence[Gpu]) -> list[int]:
    """Bytes in use on each GPU now, without what the driver says that running processes hold.

    Raises:
        GpuUnreadableError: If the driver does not say.
    """
    with _open_driver() as pynvml:
        return [_read_used(pynvml, gpu) for gpu in gpus]


class GpuMemoryWatch:
    """Whether the memory of an engine that has ended has come back. To be made before the first engine starts.

    Weakness: memory of others can be told apart only where the driver lists their processes, which it does not from
    inside most containers. A stranger that has begun to use the GPU looks like an engine's remains there, and remains
    that a child of the engine holds look like a stranger's everywhere else.

    Args:
        gpus: The worker's.
        read_used: Bytes in use on each of them; raises GpuUnreadableError.
        patience_seconds: From an engine's end until its memory must be back.
        tolerance_bytes: As much may stay.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        read_used: Callable[[Sequence[Gpu]], list[int]] = read_used_bytes,
        patience_seconds: float = 10.0,
        tolerance_bytes: int = 2**30,
    ) -> None:
        self._gpus = gpus
        self._read_used = read_used
        self._patience_seconds = patience_seconds
        self._tolerance_bytes = tolerance_bytes
        self._before = read_used(gpus) if gpus else []

    def check(self) -> str | None:
        """Wait until the memory is back; return what is wrong if it does not come back in time."""
        deadline = time.monotonic() + self._patience_seconds
        while (problem := self._find_remains()) is not None:
            if time.monotonic() >= deadline:
                return problem
            time.sleep(POLL_SECONDS)
        return None

    def _find_remains(self) -> str | None:
        if not self._gpus:
            return None
        try:
            used = self._read_used(self._gpus)
        except GpuUnreadableError as exc:
            return str(exc)
        for gpu, before, now in zip(self._gpus, self._before, used, strict=True):
            if now - before > self._tolerance_bytes:
                return (
                    f"GPU {gpu.index} ({gpu.uuid}) still holds {(now - before) / 1e9:.1f} GB "
                    f"{self._patience_seconds:g} s after its engine ended; find who holds it with nvidia-smi, or reset "
                    "the GPU, then restart the worker"
                )
        return None


@contextmanager
def _open_driver() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError as exc:
        raise GpuUnreadableError(exc) from exc
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as exc:
        raise GpuUnreadableError(exc) from exc


def _read_used(pynvml: Any, gpu: Gpu) -> int:
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        processes = []
    # A process that has ended and is still listed is what is looked for.
    return used - sum(process.usedGpuMemory or 0 for process in processes if _is_running(process.pid))


def _is_running(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _describe(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
