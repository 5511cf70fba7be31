"""One way to call any model that reads text: token ids in, a float32 vector for each text out.

Rows are padded on the right. What padding does to a row is measured once (`measure_encoder`), not looked up by name.
"""

import inspect
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from bitinglip.engine.text.forward import MODEL_ERRORS, find_input_device
from bitinglip.errors import InvalidModelError

_FLOAT32_BYTES = 4


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    FIRST = "first"
    LAST = "last"


class Encoder:
    """A loaded model behind one call.

    Args:
        model: A transformers model without a head, in eval mode.
        pooling: As it was trained.

    Raises:
        InvalidModelError: If it reads no token ids, or other things as well.
    """

    def __init__(self, model: Any, pooling: Pooling) -> None:
        accepted = inspect.signature(model.forward).parameters
        self.architecture = type(model).__name__
        if "input_ids" not in accepted:
            remedy = f"it reads {getattr(model, 'main_input_name', 'something else')}, not text; name a text encoder"
            raise InvalidModelError("model", self.architecture, remedy)
        self._model = model
        self._pooling = pooling
        self._takes_mask = "attention_mask" in accepted
        self._fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        config = model.config.get_text_config()
        # Some count positions by what is not this token; where there is none, the mask alone keeps padding out.
        padding_id = getattr(config, "pad_token_id", None)
        try:
            self.device = find_input_device(model)
            self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        except MODEL_ERRORS as exc:
            remedy = "it has no one table of token embeddings, as a model of text alone has; name a text encoder"
            raise InvalidModelError("model", self.architecture, remedy) from exc
        self._padding_id = padding_id if isinstance(padding_id, int) and 0 <= padding_id < self.vocabulary else 0
        self.dtype: torch.dtype = model.dtype
        self.shape = _find_shape(config, model.dtype)

    def encode(self, texts: list[list[int]]) -> Tensor:
        """Return the pooled vectors, float32[texts, dimensions], on the model's last device; not normalised.

        Args:
            texts: Token ids, none empty.
        """
        lengths = torch.tensor([len(ids) for ids in texts], device=self.device)
        width = max(map(len, texts))
        rows = [ids + [self._padding_id] * (width - len(ids)) for ids in texts]
        mask = torch.arange(width, device=self.device) < lengths.unsqueeze(1)
        inputs: dict[str, Any] = {"input_ids": torch.tensor(rows, device=self.device), **self._fixed}
        if self._takes_mask:
            inputs["attention_mask"] = mask.long()
        hidden: Tensor = self._model(**inputs).last_hidden_state
        return _pool(hidden, mask.to(hidden.device), lengths.to(hidden.device), self._pooling)


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What the working memory of a forward pass depends on.

    Attributes:
        token_bytes: Of each token's states, as far as they live at the same time.
        pair_bytes: Of each pair of tokens in a row: masks, and scores where attention is computed as written.
    """

    token_bytes: int
    pair_bytes: int

    def count_bytes(self, rows: int, width: int) -> int:
        """Return the working memory of one pass, estimated."""
        return rows * width * (self.token_bytes + width * self.pair_bytes)


@dataclass(frozen=True, slots=True)
class EncoderTraits:
    """What was measured of a model.

    Attributes:
        dimensions: Of its vectors.
        pads: Whether texts of several lengths may be read together.
    """

    dimensions: int
    pads: bool


def measure_encoder(encoder: Encoder) -> EncoderTraits:
    """Run a few tokens through the model in different ways and compare the vectors.

    Raises:
        InvalidModelError: If it fails on plain tokens, or if its rows touch one another.
    """
    text = [(7 + 13 * index) % encoder.vocabulary for index in range(8)]
    try:
        alone = encoder.encode([text])
        beside = encoder.encode([text, text[::-1]])
    except MODEL_ERRORS as exc:
        remedy = f"it cannot read eight tokens of text ({exc}); name a text encoder or a causal language model"
        raise InvalidModelError("model", encoder.architecture, remedy) from exc
    tolerance = (1e-4 if encoder.dtype == torch.float32 else 5e-2) * float(alone.abs().max())
    if not _is_close(alone[0], beside[0], tolerance):
        remedy = "its rows do not keep apart when they are read together; use another model"
        raise InvalidModelError("model", encoder.architecture, remedy)
    padded = encoder.encode([text, text + text[:3]])
    return EncoderTraits(alone.shape[-1], pads=_is_close(alone[0], padded[0], tolerance))


def find_positions(model: Any) -> int | None:
    """Return how many tokens the model's table of positions has room for; None if it has none that begins late.

    RoBERTa's begins behind the padding token, so that its config says two more than a text may have.
    """
    tables = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
    )
    return min((table.num_embeddings - 1 - (table.padding_idx or 0) for table in tables), default=None)


def _pool(hidden: Tensor, mask: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    match pooling:
        case Pooling.FIRST:
            return hidden[:, 0].float()
        case Pooling.LAST:
            return hidden[rows, lengths - 1].float()
        case Pooling.MEAN:
            # Filled, not multiplied: what a model leaves in padding may be no number at all.
            real = hidden.float().masked_fill(~mask.unsqueeze(-1), 0.0)
            return real.sum(dim=1) / lengths.unsqueeze(1)


def _find_shape(config: Any, dtype: torch.dtype) -> EncoderShape:
    hidden = int(config.hidden_size)
    inner = max((value for name in _INNER if isinstance(value := getattr(config, name, None), int)), default=4 * hidden)
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    # Query, key, value, what attention gives, the residual and its norm; the inner layer before and after its gate.
    token_bytes = (8 * hidden + 3 * inner) * dtype.itemsize + 2 * hidden * _FLOAT32_BYTES
    has_bias = hasattr(config, "relative_attention_num_buckets")
    attends_in_one = not has_bias and getattr(config, "_attn_implementation", None) not in {None, "eager"}
    pair_bytes = 2 * _FLOAT32_BYTES if attends_in_one else heads * (dtype.itemsize + _FLOAT32_BYTES)
    return EncoderShape(token_bytes, pair_bytes)


_INNER = ("intermediate_size", "encoder_ffn_dim", "ffn_dim", "d_ff", "n_inner")


def _is_close(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    return bool((expected - found).abs().max() <= tolerance)
