"""One model folder: what it is, and why it is refused. Reads headers only; needs no torch.

Invariant: nothing runs that came with a model, and nothing is read that lies outside of it. Weights are safetensors
whose headers and lengths agree; a folder whose configs name code of its own, or that has links out of itself, is
refused. In huggingface_hub's cache the blobs of the same model are not outside.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.engine.custom_code import (
    MODULES,
    PIPELINE_INDEX,
    is_config,
    list_components,
    list_modules,
    refuse_custom_code,
)
from bitinglip.engine.json_objects import MAX_INDEX_BYTES, read_content, read_object
from bitinglip.engine.model_config import find_architecture, find_context_tokens, find_type, measure_kv_bytes
from bitinglip.engine.safetensors_header import count_parameters
from bitinglip.engine.weight_files import WeightFiles, choose_weights, describe_absence, has_other_weights
from bitinglip.errors import InvalidModelError


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder that may be used.

    Attributes:
        context_tokens: Prompt and answer together; None if its config does not say.
        parameters: How many.
        weight_bytes: On disk.
        type: The kind of task that it is for: `text`, `image`, `embedding`; None: none that is known.
        dtype: Of the most of its parameters, as safetensors writes it: `BF16`.
        kv_bytes_per_token: What keys and values of one token take; None: it has none, or its config does not say.
        variant: Of its weights, as their names say: `fp16`; None: the plain ones.
    """

    path: Path
    architecture: str
    context_tokens: int | None
    parameters: int
    weight_bytes: int
    type: str | None
    dtype: str | None
    kv_bytes_per_token: int | None
    variant: str | None


def inspect_folder(path: Path) -> ModelFolder:
    """What the folder holds.

    Raises:
        InvalidModelError: If it may not or cannot be used, saying why and what to do.
    """
    if not any((path / name).is_file() for name in ("config.json", PIPELINE_INDEX)):
        raise InvalidModelError("model", str(path), "no config.json in it; name a folder with a whole model")
    for file in _list_files(path):
        if is_config(file.name):
            refuse_custom_code(str(path), file.relative_to(path).as_posix(), read_content(str(path), file))
    if (path / PIPELINE_INDEX).is_file():
        return _inspect_pipeline(path)
    return _inspect_model(path)


def _inspect_model(path: Path) -> ModelFolder:
    config = read_object(str(path), path / "config.json")
    weights = _choose_weights(path, path)
    if weights is None:
        raise InvalidModelError("model", str(path), describe_absence(_list_names(path)))
    modules = path / MODULES
    parts = list_modules(str(path), read_content(str(path), modules)) if modules.is_file() else []
    more = [(path / part, _choose_weights(path, path / part)) for part in parts]
    counted, weight_bytes = _count([(path, weights), *more])
    dtype = _find_most(counted)
    architecture = find_architecture(config)
    return ModelFolder(
        path=path,
        architecture=architecture,
        context_tokens=find_context_tokens(config),
        parameters=counted.total(),
        weight_bytes=weight_bytes,
        type="embedding" if modules.is_file() else find_type(architecture),
        dtype=dtype,
        kv_bytes_per_token=measure_kv_bytes(config, weight_dtype=dtype),
        variant=weights.variant,
    )


def _inspect_pipeline(path: Path) -> ModelFolder:
    index = read_object(str(path), path / PIPELINE_INDEX)
    parts = {part: _choose_weights(path, path / part) for part in list_components(str(path), index)}
    if not any(parts.values()):
        names = {name for part in parts for name in _list_names(path / part)} | _list_names(path)
        raise InvalidModelError("model", str(path), describe_absence(names))
    counted, weight_bytes = _count([(path / part, weights) for part, weights in parts.items()])
    return ModelFolder(
        path=path,
        architecture=str(index.get("_class_name", "unknown")),
        context_tokens=None,
        parameters=counted.total(),
        weight_bytes=weight_bytes,
        type="image",
        dtype=_find_most(counted),
        kv_bytes_per_token=None,
        variant=next((weights.variant for weights in parts.values() if weights and weights.variant), None),
    )


def _choose_weights(path: Path, folder: Path) -> WeightFiles | None:
    def read_index(name: str) -> dict[str, Any]:
        return read_object(str(path), folder / name, max_bytes=MAX_INDEX_BYTES)

    names = _list_names(folder)
    weights = choose_weights(str(path), names, read_index)
    if weights is None and has_other_weights(names):
        where = "" if folder == path else f"{folder.name}: "
        raise InvalidModelError("model", str(path), where + describe_absence(names))
    return weights


def _count(parts: list[tuple[Path, WeightFiles | None]]) -> tuple[Counter[str], int]:
    files = [folder / name for folder, weights in parts if weights for name in weights.names]
    counted: Counter[str] = Counter()
    for file in files:
        counted += count_parameters(file)
    return counted, sum(file.stat().st_size for file in files)


def _find_most(counted: Counter[str]) -> str | None:
    return counted.most_common(1)[0][0] if counted else None


def _list_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()


def _list_files(path: Path) -> Iterator[Path]:
    """Every file of the folder and below it, but the hidden ones, from which nobody loads."""
    home = path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        allowed.append(home.parents[1] / "blobs")
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        for file in (*(Path(folder, name) for name in folders), *shown):
            _refuse_link_outside(path, file, allowed)
        yield from shown


def _refuse_link_outside(path: Path, file: Path, allowed: list[Path]) -> None:
    name = file.relative_to(path).as_posix()
    try:
        target = file.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as exc:
        raise InvalidModelError("model", str(path), f"its {name} cannot be read ({exc}); fetch it again") from exc
    if not any(target.is_relative_to(folder) for folder in allowed):
        remedy = f"its {name} is a link to {target}, outside of it; put the file itself there"
        raise InvalidModelError("model", str(path), remedy)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidModelError("model", str(path), f"its {name} is no file; take it away")
