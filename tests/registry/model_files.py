"""Models as their folders would have them: small, and made by hand where a fault is to be in them."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitinglip.domain.models import ModelFile, ModelName
from bitinglip.registry.hub.client import HubModel

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
COMMIT = "c" * 40

Tensors = Mapping[str, tuple[str, list[int]]]

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
WEIGHTS: Tensors = {"a": ("F32", [4, 2]), "b": ("BF16", [3])}


def make_header(tensors: Tensors = WEIGHTS) -> dict[str, Any]:
    """The header of a sound file of these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return header


def make_weights(tensors: Tensors = WEIGHTS) -> bytes:
    """A sound safetensors file of these tensors, all zero."""
    data_bytes = sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors.values())
    return frame(json.dumps(make_header(tensors)).encode(), bytes(data_bytes))


def frame(header: bytes, data: bytes) -> bytes:
    """Both as a safetensors file has them, whatever they are."""
    return len(header).to_bytes(8, "little") + header + data


def write_files(folder: Path, files: Mapping[str, bytes | dict[str, Any] | list[Any]]) -> Path:
    """The folder, with these files in it."""
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def make_repository(files: Mapping[str, bytes | dict[str, Any] | list[Any]]) -> tuple[HubModel, dict[str, bytes]]:
    """What a hub would say of these files, and their bytes."""
    contents = {
        path: content if isinstance(content, bytes) else json.dumps(content).encode() for path, content in files.items()
    }
    described = tuple(
        ModelFile(path, len(content), sha256=hashlib.sha256(content).hexdigest()) for path, content in contents.items()
    )
    return HubModel(ModelName("org/name"), COMMIT, described), contents
