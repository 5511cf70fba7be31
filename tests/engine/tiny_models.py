"""Tiny causal language models of many architectures, with random weights, and a tokenizer for them."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 272
END_ID = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": END_ID,
    "bos_token_id": 257,
    "pad_token_id": 258,
}
HEAD_8 = {**SMALL, "head_dim": 8}
GPT_LIKE = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "eos_token_id": END_ID,
    "bos_token_id": 257,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL),
    "qwen2": ("Qwen2Config", SMALL),
    "qwen3": ("Qwen3Config", HEAD_8),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**HEAD_8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "mistral_sliding": ("MistralConfig", {**SMALL, "sliding_window": 7}),
    "mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}),
    "gemma2": ("Gemma2Config", {**HEAD_8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**HEAD_8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", SMALL),
    "gpt2": ("GPT2Config", GPT_LIKE),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "gptj": ("GPTJConfig", {**GPT_LIKE, "rotary_dim": 8}),
    "codegen": ("CodeGenConfig", {**GPT_LIKE, "rotary_dim": 8}),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom_alibi": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "eos_token_id": END_ID},
    ),
    "mpt_alibi": (
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 512,
            "eos_token_id": END_ID,
        },
    ),
    "falcon": ("FalconConfig", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "stablelm": ("StableLmConfig", SMALL),
    "starcoder2": ("Starcoder2Config", SMALL),
    "olmo2": ("Olmo2Config", SMALL),
    "cohere": ("CohereConfig", SMALL),
    "granite": ("GraniteConfig", SMALL),
    "smollm3": ("SmolLM3Config", SMALL),
    "gpt_oss": ("GptOssConfig", {**HEAD_8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4_chunked": (
        "Llama4TextConfig",
        {
            **HEAD_8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
            "num_hidden_layers": 4,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": END_ID},
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "eos_token_id": END_ID,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **HEAD_8,
            **LINEAR,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        {
            **SMALL,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "lfm2": ("Lfm2Config", {**SMALL, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48}),
    "falcon_h1": (
        "FalconH1Config",
        {
            **SMALL,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "bamba": (
        "BambaConfig",
        {
            **SMALL,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**SMALL, "lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 7},
    ),
    "jamba": (
        "JambaConfig",
        {
            **SMALL,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_expand": 2,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "use_mem_rope": True,
        },
    ),
    "xlstm": (
        "xLSTMConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "eos_token_id": END_ID},
    ),
    "rwkv": (
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "eos_token_id": END_ID,
        },
    ),
}


# These keep their state outside the cache that transformers' `generate` shares with everybody else.
UNSERVED = {"recurrent_gemma", "rwkv", "xlstm"}


def make_model(architecture: str, **changes: Any) -> Any:
    """A model that does not repeat itself, and whose next token is so clear that rounding does not change it."""
    name, options = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{"tie_word_embeddings": False, **options, **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            outer = any(part in name for part in ("embed", "wte", "head"))
            weight.data.mul_(4 if outer else 12)
    return model


def make_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<begin>", "<pad>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<begin>", pad_token="<pad>"
    )
    assert fast.eos_token_id == END_ID
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast
