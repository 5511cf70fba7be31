"""From a local folder to a pipeline in memory, with nothing run that came with the folder.

Only safetensors, no custom code, no network: a safety checker that the folder lacks is left out, not fetched.

Invariant: one load at a time in a process, in the engine thread: `from_pretrained` changes process-wide defaults.
"""

import json
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers.utils.logging
from diffusers import DiffusionPipeline

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.folder import ModelFolder, inspect_folder
from bitinglip.engine.image.pipeline import ImagePipeline
from bitinglip.errors import ConfigurationError, InvalidModelError, ModelTooLargeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_INDEX = "model_index.json"
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


def load_pipeline(config: EngineConfig) -> ImagePipeline:
    """Load what `config.folder` holds onto `config.devices`.

    Raises:
        ConfigurationError: If the dtype is unknown or no folder is given.
        InvalidModelError: If the folder cannot be used, or holds no text-to-image pipeline.
        ModelTooLargeError: If the weights alone do not fit the budget.
    """
    if config.folder is None:
        raise ConfigurationError(f"model {config.model!r} has no folder; an image engine needs one with safetensors")
    if config.dtype not in {"auto", *DTYPES}:
        raise ConfigurationError(f"dtype {config.dtype!r} is not known; choose one of auto, {', '.join(DTYPES)}")
    found = inspect_folder(config.folder)
    if not (config.folder / _INDEX).is_file():
        remedy = f"a {found.architecture} draws no pictures; name a folder with a {_INDEX}"
        raise InvalidModelError("model", str(config.folder), remedy)
    dtype = _choose_dtype(config, found)
    _check_size(config, found, dtype)
    pipe = _load(config, found, dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(requires_grad=False)
    return ImagePipeline(str(config.folder), pipe)


def _choose_dtype(config: EngineConfig, found: ModelFolder) -> torch.dtype:
    """The checkpoint's, unless another is asked for. CPUs compute little in half precision, and slowly."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    stored = _STORED.get(found.dtype or "", torch.float32)
    on_cpu = torch.device(config.devices[0]).type == "cpu"
    return torch.float32 if on_cpu and stored is torch.float16 else stored


def _check_size(config: EngineConfig, found: ModelFolder, dtype: torch.dtype) -> None:
    needed = -(-found.parameters * dtype.itemsize // len(config.devices))
    if config.memory_bytes is not None and needed >= config.memory_bytes:
        raise ModelTooLargeError(config.model, needed_bytes=needed + 1, budget_bytes=config.memory_bytes)


def _load(config: EngineConfig, found: ModelFolder, dtype: torch.dtype) -> Any:
    for talk in (diffusers.utils.logging, cast("Any", transformers.utils.logging)):
        talk.disable_progress_bar()
    devices = list(config.devices)
    options: dict[str, Any] = dict.fromkeys(_find_absent(found.path))
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    if len(devices) > 1:
        # Whole parts of it go to different devices.
        options["device_map"] = "balanced"
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(
            found.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            variant=found.variant,
            **options,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as exc:
        raise InvalidModelError("model", str(found.path), f"it cannot be loaded: {_first_line(exc)}") from exc
    return pipe if len(devices) > 1 else pipe.to(devices[0])


def _find_absent(folder: Path) -> list[str]:
    """Parts that the index names, and that it leaves out or a picture can be drawn without and the folder has not."""
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    parts = {name: part for name, part in index.items() if isinstance(part, list)}
    return [
        name for name, part in parts.items() if not any(part) or (name in _OPTIONAL and not (folder / name).is_dir())
    ]


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
