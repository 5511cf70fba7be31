"""Which of a repository's files are needed: one set of safetensors, and the text files that go with it.

    model_index.json there   a diffusers pipeline: the sub-folders that it names
    otherwise                a transformers model: the top folder, and the sub-folders that modules.json names

Of each folder the weights in one variant, the plain one if there is one; configs, tokenizers, templates; of the top the
licence. Never: pickles, GGUF, code, pictures, the same weights in other frameworks' formats.

Invariant: nothing is chosen before it is certain that the repository has weights that can be loaded, and that no file
that an index names lies elsewhere. Only indexes are read for it, and believed only if they hash to the hub's word.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping

from bitinglip.domain.models import Manifest, ModelFile
from bitinglip.engine.custom_code import MODULES, PIPELINE_INDEX, list_components, list_modules
from bitinglip.engine.json_objects import MAX_CONFIG_BYTES, MAX_INDEX_BYTES, JsonObject, parse_object
from bitinglip.engine.weight_files import choose_weights, describe_absence, has_other_weights
from bitinglip.errors import InvalidModelError
from bitinglip.registry.hub.client import HubModel

MAX_TEXT_BYTES = 200_000_000
TEMPLATES = "additional_chat_templates"

_TEXT = re.compile(
    r"""
    (?!adapter_) (.*[_.-])? config \.json             # config.json, tokenizer_config.json, ...
    | config_sentence_transformers\.json
    | model_index\.json | modules\.json
    | (tokenizer|vocab|added_tokens|special_tokens_map|chat_template|tekken|processor|preprocessor)\.json
    | (.*\.)? (model|spm|tiktoken|jinja)               # tokenizer.model, sentencepiece.bpe.model, chat_template.jinja
    | merges\.txt | (.*_)? vocab\.txt
    """,
    re.VERBOSE,
)
_LICENCE = re.compile(r"(licen[cs]e|notice|copying|use_policy)(\.(md|txt|rst))?", re.IGNORECASE)


class AlteredFileError(InvalidModelError):
    """A file was read whose bytes are not the manifest's; another try may bring the right ones."""

    retryable = True


def choose_files(model: HubModel, read_file: Callable[[str], bytes]) -> Manifest:
    """The files of a model that are kept.

    Args:
        model: What the repository has.
        read_file: The bytes of one of its files; asked for indexes only.

    Raises:
        InvalidModelError: If it has no weights that may be loaded, or its indexes name what is not there. Says what was
            found and what to do.
    """
    return Manifest(model.commit, tuple(_Selection(model, read_file).choose()))


class _Selection:
    def __init__(self, model: HubModel, read_file: Callable[[str], bytes]) -> None:
        self._name = str(model.name)
        self._files = {file.path: file for file in model.files}
        self._read_file = read_file

    def choose(self) -> list[ModelFile]:
        is_pipeline = PIPELINE_INDEX in self._files
        folders = self._list_components() if is_pipeline else ["", *self._list_modules()]
        weights = {folder: self._choose_weights(folder) for folder in folders}
        self._check_completeness(weights, is_pipeline=is_pipeline)
        text = {path for path in self._files if self._is_text(path, folders, is_pipeline=is_pipeline)}
        return [self._files[path] for path in sorted(text.union(*weights.values()))]

    def _list_components(self) -> list[str]:
        index = parse_object(self._name, PIPELINE_INDEX, self._read(PIPELINE_INDEX, MAX_CONFIG_BYTES))
        folders = list_components(self._name, index)
        for folder in folders:
            if not self._list_names(folder):
                remedy = f"its {PIPELINE_INDEX} names {folder}, which it does not have; use another model"
                raise InvalidModelError("model", self._name, remedy)
        return folders

    def _list_modules(self) -> list[str]:
        return list_modules(self._name, self._read(MODULES, MAX_CONFIG_BYTES)) if MODULES in self._files else []

    def _choose_weights(self, folder: str) -> set[str]:
        """The paths of a folder's weights and of their index."""
        names = self._list_names(folder)
        chosen = choose_weights(self._name, names, lambda name: self._read_index(_join(folder, name)))
        if chosen is None and folder and has_other_weights(names):
            raise InvalidModelError("model", self._name, f"{folder}: {describe_absence(names)}")
        if chosen is None:
            return set()
        return {_join(folder, name) for name in (*chosen.names, *([chosen.index] if chosen.index else []))}

    def _check_completeness(self, weights: Mapping[str, Collection[str]], *, is_pipeline: bool) -> None:
        if not any(weights.values()) or not (is_pipeline or weights[""]):
            raise InvalidModelError("model", self._name, describe_absence(self._files))
        if not is_pipeline and "config.json" not in self._files:
            remedy = "no config.json in it; use a repository in the format of transformers or diffusers"
            raise InvalidModelError("model", self._name, remedy)

    def _is_text(self, path: str, folders: Collection[str], *, is_pipeline: bool) -> bool:
        folder, _, name = path.rpartition("/")
        if not folder and _LICENCE.fullmatch(name):
            return True
        if is_pipeline and not folder:
            return name == PIPELINE_INDEX
        if not _TEXT.fullmatch(name) or folder not in {*folders, TEMPLATES}:
            return False
        if self._files[path].size > MAX_TEXT_BYTES:
            remedy = f"its {path} has {self._files[path].size:,} bytes, as no such file has; use another model"
            raise InvalidModelError("model", self._name, remedy)
        return True

    def _list_names(self, folder: str) -> set[str]:
        paths = (path.rpartition("/") for path in self._files)
        return {name for parent, _, name in paths if parent == folder}

    def _read_index(self, path: str) -> JsonObject:
        return parse_object(self._name, path, self._read(path, MAX_INDEX_BYTES), max_bytes=MAX_INDEX_BYTES)

    def _read(self, path: str, max_bytes: int) -> bytes:
        file = self._files[path]
        if file.size > max_bytes:
            remedy = f"its {path} has {file.size:,} bytes, of {max_bytes:,} that are read; use another model"
            raise InvalidModelError("model", self._name, remedy)
        content = self._read_file(path)
        if not _is_of(content, file):
            raise AlteredFileError(
                "model", self._name, f"its {path} came with other bytes than its own; fetch it again"
            )
        return content


def _is_of(content: bytes, file: ModelFile) -> bool:
    if file.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == file.sha256
    # git hashes a blob with its length before it.
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == file.git_sha1


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
