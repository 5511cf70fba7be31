"""Tiny encoders of several families, with random weights, and a tokenizer that frames every text."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import VOCABULARY, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, PreTrainedTokenizerFast

BEGIN_ID, END_ID, PAD_ID = 257, 256, 258
CONTEXT = 64

_BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD_ID,
}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _BERT_LIKE),
    "roberta": ("RobertaConfig", {**_BERT_LIKE, "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1}),
    "mpnet": ("MPNetConfig", {**_BERT_LIKE, "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": PAD_ID,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **_BERT_LIKE,
            "local_attention": 8,
            "bos_token_id": BEGIN_ID,
            "eos_token_id": END_ID,
            "cls_token_id": BEGIN_ID,
            "sep_token_id": END_ID,
        },
    ),
    "deberta": ("DebertaV2Config", {**_BERT_LIKE, "relative_attention": True, "position_buckets": 8}),
    "fnet": ("FNetConfig", {**_BERT_LIKE, "tpu_short_seq_length": CONTEXT}),
    "t5": (
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_ff": 48,
            "d_kv": 8,
            "num_layers": 2,
            "num_heads": 4,
            "n_positions": CONTEXT,
            "pad_token_id": PAD_ID,
            "decoder_start_token_id": PAD_ID,
        },
    ),
    "bart": (
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": PAD_ID,
            "bos_token_id": BEGIN_ID,
            "eos_token_id": END_ID,
            "decoder_start_token_id": END_ID,
            "forced_eos_token_id": None,
        },
    ),
}


def make_encoder(family: str, **changes: Any) -> Any:
    """A model whose vectors differ clearly from text to text."""
    name, options = ENCODERS[family]
    torch.manual_seed(0)
    auto: Any = AutoModel
    model = auto.from_config(getattr(transformers, name)(**{**options, **changes})).float().eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.mul_(4)
    return model


def make_framing_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, between a begin and an end."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", BEGIN_ID), ("<end>", END_ID)]
    )
    return tokenizer


def save(model: Any, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """The model as a user would have it."""
    model.save_pretrained(folder)
    (tokenizer or make_framing_tokenizer()).save_pretrained(folder)
    return folder
