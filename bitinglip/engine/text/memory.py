"""What a device has, what is in use, and what a failed step says about it."""

import gc
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bitinglip.engine.base import EngineConfig
from bitinglip.errors import ModelTooLargeError

LOGIT_COPIES = 4
SHARE_OF_FREE = {"cpu": 0.5, "cuda": 0.85}


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether memory ran out: torch has an error of its own for it, but not on the CPU."""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or (
        isinstance(exc, RuntimeError) and "DefaultCPUAllocator" in str(exc)
    )


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_bytes(tensors: Iterable[Tensor]) -> Counter[torch.device]:
    """Bytes on each device; a tensor that appears twice counts once."""
    sizes: Counter[torch.device] = Counter()
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        sizes[tensor.device] += tensor.nbytes
    return sizes


def count_weights(model: Any) -> Counter[torch.device]:
    """Bytes of a model's weights on each device."""
    return count_bytes([*model.parameters(), *model.buffers()])


def plan_kv_bytes(config: EngineConfig, weights: Counter[torch.device], vocabulary: int) -> int:
    """Return the bytes left for keys and values on the device that has least.

    Args:
        config: Its budget of each device; None takes a share of what is free now.
        weights: What the model takes of each device.
        vocabulary: Width of the logits, which need working space.

    Raises:
        ModelTooLargeError: If nothing is left.
    """
    logits = config.max_rows * vocabulary * 4 * LOGIT_COPIES
    if config.memory_bytes is None:
        return min(int(SHARE_OF_FREE[device.type] * free_bytes(device)) for device in weights) - logits
    left = config.memory_bytes - max(weights.values()) - logits
    if left <= 0:
        parts = f" ({max(weights.values()):,} for weights, {logits:,} for logits)"
        needed = max(weights.values()) + logits + 1
        raise ModelTooLargeError(config.model, needed_bytes=needed, budget_bytes=config.memory_bytes, parts=parts)
    return left


def count_others_bytes(config: EngineConfig) -> int:
    """Bytes of each device that other engines of the process held when this one was loaded."""
    if config.memory_bytes is None or config.whole_bytes is None:
        return 0
    return max(0, config.whole_bytes - config.memory_bytes)


def free_bytes(device: torch.device) -> int:
    """What a device has free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
