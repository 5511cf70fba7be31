"""One model folder: what it is, and why it is refused. Reads headers only; needs no torch.

Invariant: nothing runs that came with a model. Weights are safetensors, a folder with `auto_map` or pickled weights is
refused, and a safetensors file is only believed if its header and its length agree.

After the safetensors format: 8 bytes of little-endian header length, a JSON header with each tensor's dtype, shape and
byte range, then the tensors (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.errors import InvalidModelError

MIN_HEADER_BYTES = 2
MAX_HEADER_BYTES = 100_000_000
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder that may be used.

    Attributes:
        context_tokens: Prompt and answer together; None if its config does not say.
        parameters: How many.
        weight_bytes: On disk.
    """

    path: Path
    architecture: str
    context_tokens: int | None
    parameters: int
    weight_bytes: int


def inspect_folder(path: Path) -> ModelFolder:
    """What the folder holds.

    Raises:
        InvalidModelError: If it may not or cannot be used, saying why and what to do.
    """
    config = _read_config(path)
    for file in sorted(path.rglob("*.json")):
        if file.name in {"config.json", "tokenizer_config.json", "processor_config.json"}:
            _refuse_custom_code(path, file)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = [file.name for file in sorted(path.iterdir()) if file.suffix in PICKLED_SUFFIXES]
        found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise InvalidModelError("model", str(path), f"{found}; use a folder with safetensors files")
    _check_shards(path, weights)
    parameters = sum(_count_parameters(file) for file in weights)
    text_config = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    context = next((value[key] for value in (config, text_config or {}) for key in _CONTEXT_KEYS if key in value), None)
    architectures = config.get("architectures") or [config.get("model_type", "unknown")]
    return ModelFolder(
        path=path,
        architecture=str(architectures[0]),
        context_tokens=context if isinstance(context, int) else None,
        parameters=parameters,
        weight_bytes=sum(file.stat().st_size for file in weights),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise InvalidModelError("model", str(path), "no config.json in it; name a folder with a whole model") from exc
    except (ValueError, OSError) as exc:
        raise InvalidModelError("model", str(path), f"its config.json cannot be read ({exc}); fetch it again") from exc
    if not isinstance(config, dict):
        raise InvalidModelError("model", str(path), "its config.json is not an object; fetch it again")
    return config


def _refuse_custom_code(path: Path, file: Path) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        raise InvalidModelError("model", str(path), f"its {file.name} cannot be read ({exc}); fetch it again") from exc
    if isinstance(content, dict) and "auto_map" in content:
        remedy = f"its {file.name} has auto_map, which runs code of the model's own; use a model without it"
        raise InvalidModelError("model", str(path), remedy)


def _check_shards(path: Path, weights: list[Path]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, OSError) as exc:
        raise InvalidModelError("model", str(path), f"its {index.name} cannot be read; fetch it again") from exc
    missing = sorted(named - {file.name for file in weights})
    if missing:
        raise InvalidModelError("model", str(path), f"{missing[0]} is missing; fetch the whole model again")


def _count_parameters(file: Path) -> int:
    """Parameters in one file, after its header and its length were found to agree."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not MIN_HEADER_BYTES <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(file, "its header is longer than the file")
        try:
            header = json.loads(stream.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            ranges = sorted(tuple(entry["data_offsets"]) for entry in tensors)
            parameters = sum(math.prod(entry["shape"]) for entry in tensors)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise _damaged(file, "its header cannot be read") from exc
    end = 0
    for start, stop in ranges:
        if start != end or stop < start:
            raise _damaged(file, "its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise _damaged(file, f"it has {size:,} bytes, its header says {8 + length + end:,}")
    return int(parameters)


def _damaged(file: Path, reason: str) -> InvalidModelError:
    return InvalidModelError("model", os.fspath(file), f"damaged: {reason}; fetch it again")
