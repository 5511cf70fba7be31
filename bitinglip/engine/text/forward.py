"""One way to call any causal language model: ids and a cache in, the next token's logits out.

Models differ in what `forward` takes (state-space models call the cache `cache_params` and know no positions) and in
what they get right: some lose their state between two chunks of a prompt, some let padding leak into it. What a model
can do is measured once at load (`measure_traits`), not looked up by name, so that a new architecture is served
correctly, if slower, from its first day.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from bitinglip.engine.text.batch import RowBatch
from bitinglip.engine.text.layers import Span, StateRows, find_columns, find_states, make_layer
from bitinglip.engine.text.memory import count_bytes
from bitinglip.errors import InvalidModelError

# What a model's own code raises for a call that it cannot take.
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)


class CausalModel:
    """A loaded model behind one call.

    Args:
        model: A transformers causal language model, in eval mode.
    """

    def __init__(self, model: Any) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._model = model
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        # A pure state-space model multiplies its one new token by a mask as long as the whole text.
        self._takes_mask = "attention_mask" in accepted and self._cache_name == "past_key_values"
        self._takes_positions = "position_ids" in accepted
        self._fixed: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self._fixed["logits_to_keep"] = 1
        self.embedding: Tensor = model.get_input_embeddings().weight
        self.architecture = type(model).__name__
        self.device = find_input_device(model)
        text_config = model.config.get_text_config(decoder=True)
        self.context = find_context(text_config)

    def make_cache(self) -> DynamicCache:
        """An empty cache for a prefill, with the kinds of layer that the model needs."""
        return DynamicCache(config=self._model.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]; the cache is filled in place.

        Args:
            input_ids: int64[rows, tokens].
            attention_mask: int64[rows, tokens before + tokens].
            positions: int64[rows, tokens].
            cache: What the tokens before have left.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, self._cache_name: cache, **self._fixed}
        if self._takes_mask:
            inputs["attention_mask"] = attention_mask
        if self._takes_positions:
            inputs["position_ids"] = positions
        logits: Tensor = self._model(**inputs).logits
        return logits[:, -1]

    def read(self, prompts: list[list[int]], cache: Cache, before: int = 0) -> Tensor:
        """Run prompts, or the next chunk of one, through the model; return the logits after each.

        Args:
            prompts: Token ids; shorter ones are padded on the left.
            cache: Filled in place.
            before: Tokens of the only prompt that the cache holds already.
        """
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        padding = torch.tensor([[width - len(prompt)] for prompt in prompts], device=self.device)
        columns = torch.arange(before + width, device=self.device).unsqueeze(0)
        positions = (columns[:, before:] - padding).clamp(min=0)
        return self.forward(ids, (columns >= padding).long(), positions, cache)


@dataclass(frozen=True, slots=True)
class Traits:
    """What was measured of a model.

    Attributes:
        vocabulary: Width of its logits.
        bytes_per_token: Keys and values of one token, on the device that holds most.
        bytes_per_row: States of one row, on the device that holds most.
        chunks: Whether a prompt may be read in pieces.
        pads: Whether prompts of several lengths may be read together.
    """

    vocabulary: int
    bytes_per_token: int
    bytes_per_row: int
    chunks: bool
    pads: bool


def measure_traits(model: CausalModel) -> Traits:
    """Run a few tokens through the model in different ways and compare the logits.

    Raises:
        InvalidModelError: If it fails on plain tokens, or if its rows cannot decode together.
    """
    vocabulary = model.embedding.shape[0]
    prompt = [(7 + 13 * index) % vocabulary for index in range(8)]
    cache = model.make_cache()
    try:
        whole = model.read([prompt], cache)
    except MODEL_ERRORS as exc:
        raise InvalidModelError("model", model.architecture, f"it cannot read eight tokens: {exc}") from exc
    per_token, per_row = _measure_memory(model, cache, len(prompt))
    if not _agrees(whole, lambda: _decode_beside_another(model, prompt)):
        remedy = "its rows do not keep apart when they decode together; serve it with another engine"
        raise InvalidModelError("model", model.architecture, remedy)
    return Traits(
        vocabulary=whole.shape[-1],
        bytes_per_token=per_token,
        bytes_per_row=per_row,
        chunks=_agrees(whole, lambda: _read_in_chunks(model, prompt)),
        pads=_agrees(whole, lambda: model.read([prompt, prompt + prompt[:3]], model.make_cache())[:1]),
    )


def find_context(text_config: Any) -> int | None:
    """Return how many tokens the model takes in all, or None where its architecture knows no bound."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def find_input_device(model: Any) -> torch.device:
    """Return where the token ids go: with a device map, where accelerate placed the embeddings."""
    hook_device = getattr(getattr(model.get_input_embeddings(), "_hf_hook", None), "execution_device", None)
    return torch.device(hook_device) if hook_device is not None else model.get_input_embeddings().weight.device


def _read_in_chunks(model: CausalModel, prompt: list[int]) -> Tensor:
    cache = model.make_cache()
    model.read([prompt[:3]], cache)
    model.read([prompt[3:5]], cache, before=3)
    return model.read([prompt[5:]], cache, before=5)


def _decode_beside_another(model: CausalModel, prompt: list[int]) -> Tensor:
    batch = RowBatch(model.device)
    for context in (prompt[:-1], prompt[2:]):
        cache = model.make_cache()
        model.read([context], cache)
        batch.join(cache, [len(context)], row_capacity=2, column_capacity=2 * len(prompt))
    tokens = torch.tensor([prompt[-1:], prompt[:1]], device=model.device)
    return model.forward(tokens, batch.attention_mask, batch.positions, batch)[:1]


def _agrees(expected: Tensor, read: Any) -> bool:
    """Whether another way of reading gives the same logits, up to rounding.

    Weakness: a fault smaller than 5 % of the largest logit passes in half precision.
    """
    try:
        found = read()
    except MODEL_ERRORS:
        return False
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())


def _measure_memory(model: CausalModel, cache: DynamicCache, tokens: int) -> tuple[int, int]:
    per_token: Counter[torch.device] = Counter()
    per_row: Counter[torch.device] = Counter()
    sources: list[Any] = cache.layers
    for source in sources:
        layer = make_layer(source, Span())
        if layer is None:
            remedy = f"rows cannot share its {type(source).__name__}; serve it with another engine"
            raise InvalidModelError("model", model.architecture, remedy)
        if isinstance(layer, StateRows):
            per_row += count_bytes(find_states(source))
        for tensor in find_columns(source):
            per_token[tensor.device] += tensor.nbytes // min(tokens, tensor.shape[-2])
    return max(per_token.values(), default=0), max(per_row.values(), default=0)
