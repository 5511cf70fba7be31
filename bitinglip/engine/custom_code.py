"""Configs that would have code run which came with the model: refused, whoever would have to allow it.

Three ways are known. `auto_map` has transformers import a file of the repository. A component of `model_index.json`
whose library is a file of it has diffusers do so, and so does a class that is written as a list. A type in
`modules.json` that is not of sentence-transformers is such a file as well.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from bitinglip.engine.json_objects import JsonObject, parse_json, parse_object
from bitinglip.errors import InvalidModelError

PIPELINE_INDEX = "model_index.json"
MODULES = "modules.json"

# Beside themselves and transformers, diffusers resolves libraries among their own pipelines' packages.
LIBRARIES = {
    "diffusers",
    "transformers",
    "audioldm2",
    "blip_diffusion",
    "deepfloyd_if",
    "flux",
    "kolors",
    "latent_diffusion",
    "musicldm",
    "paint_by_example",
    "shap_e",
    "stable_audio",
    "stable_diffusion",
    "unidiffuser",
    "wuerstchen",
}

_CONFIG = re.compile(r".*(config|processor|template).*\.json")


def is_config(path: str) -> bool:
    """Whether a file is one that could have code run: to be looked into before the model is used."""
    name = PurePosixPath(path).name
    return name in {PIPELINE_INDEX, MODULES} or _CONFIG.fullmatch(name) is not None


def refuse_custom_code(model: str, path: str, content: bytes) -> None:
    """Return if a config has no code run that came with the model.

    Args:
        model: As messages call it.
        path: The config's, within the model's folder.
        content: Its bytes.

    Raises:
        InvalidModelError: If it has, or is no config.
    """
    name = PurePosixPath(path).name
    if name == MODULES:
        list_modules(model, content)
        return
    if any("auto_map" in found for found in _iterate_objects(parse_json(model, path, content))):
        raise _refusal(model, path, "auto_map")
    if name == PIPELINE_INDEX:
        list_components(model, parse_object(model, path, content))


def list_components(model: str, index: JsonObject) -> list[str]:
    """The sub-folders that the `model_index.json` of a diffusers pipeline names.

    Raises:
        InvalidModelError: If it names classes of the model's own, or folders that are none.
    """
    if isinstance(index.get("_class_name"), list):
        raise _refusal(model, PIPELINE_INDEX, "a pipeline of its own")
    folders = []
    for folder, component in index.items():
        if folder.startswith("_") or not isinstance(component, list):
            continue
        library = component[0] if component else None
        if library is None:
            continue
        if not isinstance(library, str) or library not in LIBRARIES:
            raise _refusal(model, PIPELINE_INDEX, f"{folder} of {library!r}")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", folder):
            raise InvalidModelError(
                "model", model, f"its {PIPELINE_INDEX} names {folder!r}, no sub-folder; use another"
            )
        folders.append(folder)
    return folders


def list_modules(model: str, content: bytes) -> list[str]:
    """The sub-folders that the `modules.json` of sentence-transformers names.

    Raises:
        InvalidModelError: If it names classes of the model's own, or folders that are none.
    """
    folders = []
    for module in _parse_modules(model, content):
        kind, folder = module.get("type"), module.get("path", "")
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise _refusal(model, MODULES, f"a module {kind!r}")
        if not isinstance(folder, str) or not re.fullmatch(r"[A-Za-z0-9_-]*", folder):
            raise InvalidModelError("model", model, f"its {MODULES} names {folder!r}, no sub-folder; use another model")
        if folder:
            folders.append(folder)
    return folders


def _parse_modules(model: str, content: bytes) -> list[JsonObject]:
    modules = parse_json(model, MODULES, content)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InvalidModelError("model", model, f"its {MODULES} is no list of objects; fetch it again")
    return modules


def _iterate_objects(value: Any) -> Iterator[JsonObject]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as found:
                yield found
                waiting += found.values()
            case list() as found:
                waiting += found


def _refusal(model: str, path: str, what: str) -> InvalidModelError:
    remedy = f"its {path} has {what}, which runs code of the model's own; use a model without it"
    return InvalidModelError("model", model, remedy)
