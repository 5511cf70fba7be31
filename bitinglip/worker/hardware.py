"""The GPUs of this machine, asked of NVIDIA's driver; no torch, no CUDA context."""

from dataclasses import asdict, dataclass
from typing import Any


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
