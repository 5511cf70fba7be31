"""JSON that came with a model: bounded, and refused with what to do where it is none."""

import json
from pathlib import Path
from typing import Any

from bitinglip.errors import InvalidModelError

MAX_CONFIG_BYTES = 10_000_000
MAX_INDEX_BYTES = 50_000_000

JsonObject = dict[str, Any]


def read_object(model: str, path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> JsonObject:
    """The object in a file.

    Raises:
        InvalidModelError: If the file cannot be read, is too large, or holds none.
    """
    return parse_object(model, path.name, read_content(model, path, max_bytes=max_bytes), max_bytes=max_bytes)


def read_content(model: str, path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """A file's bytes; of a larger one the first, and one more than may be.

    Raises:
        InvalidModelError: If the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except OSError as exc:
        raise InvalidModelError("model", model, f"its {path.name} cannot be read ({exc}); fetch it again") from exc


def parse_object(model: str, name: str, content: bytes, *, max_bytes: int = MAX_CONFIG_BYTES) -> JsonObject:
    """The object that a file's bytes are.

    Raises:
        InvalidModelError: If they are too many, or none.
    """
    parsed = parse_json(model, name, content, max_bytes=max_bytes)
    if not isinstance(parsed, dict):
        raise InvalidModelError("model", model, f"its {name} is not an object; fetch it again")
    return parsed


def parse_json(model: str, name: str, content: bytes, *, max_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """The value that a file's bytes are.

    Raises:
        InvalidModelError: If they are too many, or none.
    """
    if len(content) > max_bytes:
        remedy = f"its {name} has more than {max_bytes:,} bytes, as no model's has; use another model"
        raise InvalidModelError("model", model, remedy)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InvalidModelError("model", model, f"its {name} cannot be read ({exc}); fetch it again") from exc
