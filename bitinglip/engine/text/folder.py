"""Refuse a model folder before anything reads its weights: no pickles, no code, no half files.

Torch-free, so that a submission can be checked with the same rules.
"""

import json
import struct
from pathlib import Path
from typing import Any

from bitinglip.errors import InvalidModelError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
MAX_HEADER_BYTES = 100_000_000


def check_folder(folder: Path) -> None:
    """Check everything that can be known without loading.

    Raises:
        InvalidModelError: With what is wrong and what would be right.
    """
    if not folder.is_dir():
        raise InvalidModelError("model", str(folder), "no such folder; name one with config.json and safetensors")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_json(folder, name, required=name == "config.json"):
            remedy = f"{name} has 'auto_map', code that came with the model and is never run; choose a model without"
            raise InvalidModelError("model", str(folder), remedy)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        remedy = f"{pickled[0]} is pickled and never opened; convert it to safetensors" if pickled else "no safetensors"
        raise InvalidModelError("model", str(folder), remedy)
    index = _read_json(folder, "model.safetensors.index.json", required=False)
    for shard in sorted(set(index.get("weight_map", {}).values())):
        if not (folder / shard).is_file():
            raise InvalidModelError("model", str(folder), f"{shard} is missing; download the model again")
    for path in weights:
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Compare a file's size with what its own header promises.

    Raises:
        InvalidModelError: If it was cut off or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0  # noqa: PLR2004 - the format's
        if not 0 < header_bytes <= min(MAX_HEADER_BYTES, size):
            raise InvalidModelError("model", str(path), "it is no safetensors file; download the model again")
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise InvalidModelError("model", str(path), "its header is damaged; download the model again") from exc
    expected = 8 + header_bytes + max(ends, default=0)
    if size != expected:
        remedy = f"it has {size:,} bytes and should have {expected:,}; download the model again"
        raise InvalidModelError("model", str(path), remedy)


def _read_json(folder: Path, name: str, *, required: bool) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if required:
            raise InvalidModelError("model", str(folder), f"it has no {name}; name a folder with one")
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise InvalidModelError("model", str(path), f"it is no JSON: {exc}; download the model again") from exc
    return document if isinstance(document, dict) else {}
