"""What a transformers config says of a model: what it is for, how much it reads, what a token of it takes.

The keys are those of transformers' configurations. Architectures name the same things differently, and vision and
audio models keep those of their language model in `text_config`.
"""

from collections.abc import Iterable
from typing import Any

MAX_NESTING = 3
MAX_NUMBER = 2**31

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "model_dim")
_HEAD_DIMS = ("head_dim", "attention_head_dim", "kv_channels")

# Layers by how they remember, as `layer_types` and its forerunners call them.
_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local", "hybrid"}
# They have no keys and values at all, though some of them have heads.
_RECURRENT = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}
# Their attention is shaped by other keys than everybody's.
_UNKNOWN = {"zamba", "zamba2", "recurrent_gemma", "openelm", "deci", "nemotron-nas"}
# Whatever number of such heads their configs name, they keep keys and values for each head.
_EVERY_HEAD = ("falcon", "gpt_neox", "opt")

_GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_EMBEDDING = ("ForMaskedLM", "Model")


def find_architecture(config: dict[str, Any]) -> str:
    """The class that the weights were saved from; failing that the family, or `unknown`."""
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    return str(named or "unknown")


def find_type(architecture: str) -> str | None:
    """The kind of task that an architecture is for: `text`, `embedding`; None: neither."""
    if architecture.endswith(_GENERATING):
        return "text"
    return "embedding" if architecture.endswith(_EMBEDDING) else None


def find_context_tokens(config: dict[str, Any]) -> int | None:
    """How many tokens the model takes in all; None if its config does not say."""
    found = (part[key] for part in (config, find_text_config(config)) for key in CONTEXT_KEYS if key in part)
    return next((value for value in found if _is_number(value)), None)


def find_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    for _ in range(MAX_NESTING):
        parts = (config.get(key) for key in _TEXT_CONFIGS)
        config = next((part for part in parts if isinstance(part, dict)), config)
    return config


def measure_kv_bytes(config: dict[str, Any], *, weight_dtype: str | None = None) -> int | None:
    """Bytes that keys and values of one token take; None: it has none, or its config does not say.

    Of layers that attend to a window only, as much as within it.

    Args:
        config: The whole of it.
        weight_dtype: Of the most of its weights, as safetensors writes it, where the config names none.
    """
    text = find_text_config(config)
    if any(part.get("is_encoder_decoder") for part in (config, text)):
        return None
    if str(text.get("model_type")) in _RECURRENT | _UNKNOWN:
        return None
    layers, heads = _count_attending(text), _find(text, _HEADS)
    values = _count_values(text, heads) if heads else None
    if layers is None or values is None:
        return None
    written = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    # Of quantised weights nobody knows; they compute in 16 bits.
    item_bytes = DTYPE_BYTES.get(str(written)) or {"F32": 4}.get(weight_dtype or "", 2)
    return layers * values * item_bytes or None


def _count_attending(text: dict[str, Any]) -> int | None:
    """Layers that keep keys and values of their own."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(kinds, list):
        layers = sum(str(kind) in _ATTENDING for kind in kinds)
    else:
        total = _find(text, _LAYERS)
        if total is None:
            return None
        layers = _count_periodic(text, total)
    return max(layers - (_find(text, ("num_kv_shared_layers",)) or 0), 0)


def _count_periodic(text: dict[str, Any], total: int) -> int:
    indices, period = text.get("attn_layer_indices"), _find(text, ("attn_layer_period",))
    if isinstance(indices, list):
        return len(indices)
    return total if period is None else len(range(_find(text, ("attn_layer_offset",)) or 0, total, period))


def _count_values(text: dict[str, Any], heads: int) -> int | None:
    """Numbers that one layer keeps of one token."""
    if latent := _find(text, ("kv_lora_rank",)):
        return latent + (_find(text, ("qk_rope_head_dim",)) or 0)
    head_dim = _find(text, _HEAD_DIMS)
    hidden = _find(text, _HIDDEN)
    if head_dim is None:
        head_dim = hidden // heads if hidden else None
    return None if head_dim is None else 2 * _count_kv_heads(text, heads) * head_dim


def _count_kv_heads(text: dict[str, Any], heads: int) -> int:
    attention = text.get("attn_config")
    if isinstance(attention, dict) and (inner := _find(attention, ("kv_n_heads",))):
        return inner
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    if text.get("model_type") in _EVERY_HEAD:
        return heads
    return _find(text, _KV_HEADS) or heads


def _find(config: dict[str, Any], keys: Iterable[str]) -> int | None:
    found = (config[key] for key in keys if key in config)
    return next((value for value in found if _is_number(value)), None)


def _is_number(value: object) -> bool:
    # Larger ones are written to say that there is no bound.
    return type(value) is int and 0 < value < MAX_NUMBER
