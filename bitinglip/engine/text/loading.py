"""From a local folder to a model in memory, with nothing run that came with the folder.

Only safetensors, no custom code, no network. Several devices: accelerate's device map, balanced, so that layers follow
one another over the devices.

Invariant: one load at a time in a process. `from_pretrained` sets the process-wide default dtype while it runs, so two
loads at once, or a load beside a forward pass, give wrong dtypes. Engines of one process share the engine thread, so
none computes meanwhile.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.folder import inspect_folder
from bitinglip.errors import ConfigurationError, InvalidModelError

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_load_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights and tokenizer, ready to compute.

    Attributes:
        model: A transformers causal language model in eval mode.
        tokenizer: A fast tokenizer.
        end_ids: Tokens that end a text.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    end_ids: frozenset[int]


def load_model(config: EngineConfig) -> LoadedModel:
    """Load what `config.folder` holds onto `config.devices`.

    Raises:
        ConfigurationError: If the dtype is unknown or no folder is given.
        InvalidModelError: If the folder cannot be used as it is.
    """
    model, tokenizer = load_pretrained(config, AutoModelForCausalLM)
    return LoadedModel(model, tokenizer, _find_end_ids(model, tokenizer))


def load_pretrained(
    config: EngineConfig, auto: Any, *, unused: tuple[str, ...] = ()
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return the model of one of transformers' auto classes, in eval mode, and its tokenizer.

    Args:
        config: What to load, and onto which devices.
        auto: The auto class.
        unused: Beginnings of the names of weights that may be missing, because nothing is computed with them.

    Raises:
        ConfigurationError: If the dtype is unknown or no folder is given.
        InvalidModelError: If the folder cannot be used as it is.
    """
    if config.folder is None:
        raise ConfigurationError(f"model {config.model!r} has no folder; its engine needs one with safetensors")
    if config.dtype not in DTYPES:
        raise ConfigurationError(f"dtype {config.dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    found = inspect_folder(config.folder)
    if found.type == "image":
        remedy = f"a {found.architecture} draws pictures; ask it with a task of type image"
        raise InvalidModelError("model", str(config.folder), remedy)
    with _load_lock:
        tokenizer = _load_tokenizer(config.folder)
        model = _load_weights(config.folder, config, auto, unused, found.variant)
    return model, tokenizer


def plan_devices(model: Any, devices: list[str], dtype: torch.dtype, free_bytes: dict[str, int]) -> dict[str, str]:
    """Return which device each module goes to, in the order of `devices`, filled evenly.

    Args:
        model: The model's skeleton, on the meta device.
        devices: At least two.
        dtype: What the weights will be.
        free_bytes: What may be used of each device.
    """
    budget = {index: free_bytes[device] for index, device in enumerate(devices)}
    whole = list(getattr(model, "_no_split_modules", None) or [])
    balanced = get_balanced_memory(model, budget, no_split_module_classes=whole, dtype=dtype)
    placed = infer_auto_device_map(model, balanced, no_split_module_classes=whole, dtype=dtype)
    return {name: devices[index] if isinstance(index, int) else index for name, index in placed.items()}


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as exc:
        raise InvalidModelError("model", str(folder), f"its tokenizer cannot be read: {_first_line(exc)}") from exc
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidModelError("model", str(folder), "it has no tokenizer.json; convert its tokenizer to a fast one")
    return tokenizer


def _load_weights(folder: Path, config: EngineConfig, auto: Any, unused: tuple[str, ...], variant: str | None) -> Any:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    devices = list(config.devices)
    try:
        if len(devices) > 1:
            placement: Any = _place_over(folder, devices, config, auto, options)
        else:
            placement = None if devices == ["cpu"] else devices[0]
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=DTYPES[config.dtype],
            use_safetensors=True,
            variant=variant,
            device_map=placement,
            output_loading_info=True,
            **options,
        )
        model, report = loaded
    except (OSError, ValueError, KeyError) as exc:
        raise InvalidModelError("model", str(folder), f"its weights cannot be loaded: {_first_line(exc)}") from exc
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith(unused)):
        remedy = f"{len(missing)} weights are missing, the first is {missing[0]!r}; download the model again"
        raise InvalidModelError("model", str(folder), remedy)
    model.eval()
    model.requires_grad_(requires_grad=False)
    return model


def _place_over(
    folder: Path, devices: list[str], config: EngineConfig, auto: Any, options: dict[str, Any]
) -> dict[str, str]:
    model_config = AutoConfig.from_pretrained(folder, **options)
    with init_empty_weights():
        skeleton = auto.from_config(model_config)
    dtype = DTYPES[config.dtype]
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(model_config, "dtype", None) or torch.float32
    free = {device: config.memory_bytes or _free_bytes(device) for device in devices}
    return plan_devices(skeleton, devices, dtype, free)


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _find_end_ids(model: Any, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """What `generate` would stop at: the generation config's tokens, else the tokenizer's."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
