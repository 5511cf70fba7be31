"""The header of a safetensors file: what its tensors are, believed only if all of it and the file's length agree.

After the safetensors format: 8 bytes of little-endian header length, a JSON header with each tensor's dtype, shape and
byte range, then the tensors (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from bitinglip.errors import InvalidModelError

MIN_HEADER_BYTES = 2
MAX_HEADER_BYTES = 100_000_000

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def count_parameters(file: Path) -> Counter[str]:
    """How many parameters of each dtype a file has.

    Raises:
        InvalidModelError: If its header, its tensors and its length do not agree.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not MIN_HEADER_BYTES <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(file, "its header is longer than the file")
        content = stream.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_refuse_duplicates)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ranges = sorted(_check_tensor(name, entry) for name, entry in tensors.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _damaged(file, f"its header cannot be read ({exc})") from exc
    _check_ranges(file, ranges, size - 8 - length)
    counted: Counter[str] = Counter()
    for entry in tensors.values():
        counted[entry["dtype"]] += math.prod(entry["shape"])
    return counted


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "one name is there twice"
        raise ValueError(message)
    return found


def _check_tensor(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        message = f"{name} has a shape or a range that is none"
        raise ValueError(message)
    if entry["dtype"] not in DTYPE_BITS:
        message = f"{name} has the dtype {entry['dtype']!r}, which is unknown"
        raise ValueError(message)
    if math.prod(shape) * DTYPE_BITS[entry["dtype"]] != (end - start) * 8:
        message = f"{name} has {end - start:,} bytes, not those of its shape"
        raise ValueError(message)
    return start, end


def _check_ranges(file: Path, ranges: list[tuple[int, int]], data_bytes: int) -> None:
    for (_, end), (start, _) in pairwise([(0, 0), *ranges]):
        if start != end:
            raise _damaged(file, "its tensors overlap or leave gaps")
    end = ranges[-1][1] if ranges else 0
    if end != data_bytes:
        raise _damaged(file, f"it has {data_bytes:,} bytes of tensors, its header says {end:,}")


def _damaged(file: Path, reason: str) -> InvalidModelError:
    return InvalidModelError("model", os.fspath(file), f"damaged: {reason}; fetch it again")
