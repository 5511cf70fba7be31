"""From a local folder to an encoder in memory, under the same rules as a text model's (`engine.text.loading`).

How it pools and how much it reads is what its folder says in the way of sentence-transformers, where it says so:
`modules.json` lists what a text goes through, `1_Pooling/config.json` how, `sentence_bert_config.json` how much.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedTokenizerFast

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.custom_code import MODULES
from bitinglip.engine.embedding.encoder import Encoder, Pooling, find_positions
from bitinglip.engine.folder import inspect_folder
from bitinglip.engine.json_objects import parse_json, read_content, read_object
from bitinglip.engine.text.forward import find_context
from bitinglip.engine.text.loading import load_pretrained
from bitinglip.errors import InvalidModelError

# Weights that the vectors do not pass through: a model may come without them.
UNUSED_WEIGHTS = ("pooler.", "decoder.")
NO_BOUND = 10**9

_SENTENCE_CONFIG = "sentence_bert_config.json"
_PLAIN_MODULES = {"Transformer", "Pooling", "Normalize"}
_POOLINGS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.FIRST,
    "pooling_mode_lasttoken": Pooling.LAST,
}


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """Weights and tokenizer, ready to compute.

    Attributes:
        model: A transformers model without a head, in eval mode.
        context: Tokens that it takes; None if it knows no bound.
    """

    model: Any
    encoder: Encoder
    tokenizer: PreTrainedTokenizerFast
    context: int | None


def load_encoder(config: EngineConfig) -> LoadedEncoder:
    """Load what `config.folder` holds onto `config.devices`.

    Raises:
        ConfigurationError: If the dtype is unknown or no folder is given.
        InvalidModelError: If the folder cannot be used as it is, or holds something that reads no text.
    """
    if config.folder is not None and inspect_folder(config.folder).type == "image":
        remedy = "it makes images and gives no vectors; name a text encoder or a causal language model"
        raise InvalidModelError("model", str(config.folder), remedy)
    pooling = find_pooling(config.folder) if config.folder is not None else Pooling.MEAN
    model, tokenizer = load_pretrained(config, AutoModel, unused=UNUSED_WEIGHTS)
    # Not by its config: an encoder that was saved without its decoder says there that it has none.
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        model = model.get_encoder()
    encoder = Encoder(model, pooling)
    return LoadedEncoder(model, encoder, tokenizer, _find_context(model, tokenizer, config.folder))


def find_pooling(folder: Path) -> Pooling:
    """Return how the model of a folder pools; the mean where it does not say.

    Raises:
        InvalidModelError: If it does so in a way that is not known here, or does more than pool.
    """
    if not (folder / MODULES).is_file():
        return Pooling.MEAN
    modules = parse_json(str(folder), MODULES, read_content(str(folder), folder / MODULES))
    kinds = {str(module["type"]).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if unknown := sorted(set(kinds) - _PLAIN_MODULES):
        remedy = f"its {MODULES} has {unknown[0]}, which is not computed here; use a model without it"
        raise InvalidModelError("model", str(folder), remedy)
    if "Pooling" not in kinds:
        return Pooling.MEAN
    options = read_object(str(folder), folder / kinds["Pooling"] / "config.json")
    chosen = [name for name, value in options.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        remedy = f"it pools by {' and '.join(chosen) or 'nothing'}; use a model with one of {', '.join(_POOLINGS)}"
        raise InvalidModelError("model", str(folder), remedy)
    return _POOLINGS[chosen[0]]


def _find_context(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path | None) -> int | None:
    """The least of what the config, the table of positions, the tokenizer and sentence-transformers say."""
    stated = None
    if folder is not None and (folder / _SENTENCE_CONFIG).is_file():
        stated = read_object(str(folder), folder / _SENTENCE_CONFIG).get("max_seq_length")
    bounds = (find_context(model.config.get_text_config()), find_positions(model), tokenizer.model_max_length, stated)
    return min((bound for bound in bounds if isinstance(bound, int) and 0 < bound < NO_BOUND), default=None)
