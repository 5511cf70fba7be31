"""Which files of a folder hold its weights: one set of safetensors, in one variant, as transformers and diffusers load.

    model.safetensors                              one file
    model.safetensors.index.json                   shards, named by their index
    model.fp16.safetensors                         a variant, one file
    model.safetensors.index.fp16.json              a variant, shards

diffusers' own components have `diffusion_pytorch_model` in place of `model`.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from bitinglip.domain.models import is_file_path
from bitinglip.errors import InvalidModelError

SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
GGUF_SUFFIX = ".gguf"
MAX_SHARDS = 10_000

_STEMS = ("model", "diffusion_pytorch_model")
_VARIANT = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:\.(\w+)\.safetensors|\.safetensors\.index\.(\w+)\.json)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of one folder.

    Attributes:
        names: The safetensors files.
        index: The file that says which tensor is in which shard; None: all are in one file.
        variant: As the files' names say, `fp16`; None: the plain ones.
    """

    names: tuple[str, ...]
    index: str | None = None
    variant: str | None = None


def choose_weights(
    model: str, names: Collection[str], read_index: Callable[[str], dict[str, Any]]
) -> WeightFiles | None:
    """The weights among a folder's files; None if there are none.

    The plain ones rather than a variant, and those of an index rather than a single file.

    Args:
        model: As messages call it.
        names: The files of the folder itself.
        read_index: The object in one of them.

    Raises:
        InvalidModelError: If the index names files that are not there, or not in the folder.
    """
    for variant in (None, *_list_variants(names)):
        for stem in _STEMS:
            dotted = f".{variant}" if variant else ""
            index, single = f"{stem}{SUFFIX}.index{dotted}.json", f"{stem}{dotted}{SUFFIX}"
            if index in names:
                return WeightFiles(_list_shards(model, index, read_index(index), names), index, variant)
            if single in names:
                return WeightFiles((single,), variant=variant)
    return None


def _list_variants(names: Collection[str]) -> list[str]:
    found = (_VARIANT.fullmatch(name) for name in names)
    return sorted({match[1] or match[2] for match in found if match})


def _list_shards(model: str, index: str, content: dict[str, Any], names: Collection[str]) -> tuple[str, ...]:
    mapped = content.get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
        raise InvalidModelError("model", model, f"its {index} cannot be read: no weight_map; fetch it again")
    shards = sorted(set(mapped.values()))
    if len(shards) > MAX_SHARDS:
        raise InvalidModelError("model", model, f"its {index} names {len(shards):,} files; use another model")
    for shard in shards:
        if not is_file_path(shard) or "/" in shard or not shard.endswith(SUFFIX):
            remedy = f"its {index} names {shard!r}, no safetensors file beside it; use another model"
            raise InvalidModelError("model", model, remedy)
        if shard not in names:
            raise InvalidModelError("model", model, f"{shard} is missing; fetch the whole model again")
    return tuple(shards)


def has_other_weights(names: Collection[str]) -> bool:
    """Whether a folder has weights that are no safetensors."""
    return any(name.endswith((*PICKLED_SUFFIXES, GGUF_SUFFIX)) for name in names)


def describe_absence(names: Collection[str]) -> str:
    """What a folder has in place of weights that can be used, and what to do."""
    for kind, suffixes in (("pickled weights", PICKLED_SUFFIXES), ("GGUF weights", (GGUF_SUFFIX,))):
        found = sorted(name for name in names if name.endswith(suffixes))
        if found:
            remedy = "use a folder with safetensors files, another repository of the same model, or convert it"
            return f"only {kind} ({found[0]}); {remedy}"
    others = sorted(name for name in names if name.endswith(SUFFIX))
    if others:
        return f"no model.safetensors and no index of its parts, only {others[0]}; use a folder with the whole model"
    return "no weights; use a folder or repository with safetensors files"
