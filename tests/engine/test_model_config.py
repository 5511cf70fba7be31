"""What configs say of models equals what is measured of them once they are loaded."""

import json
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, UNSERVED, make_model

from bitinglip.engine.model_config import find_architecture, find_context_tokens, find_type, measure_kv_bytes
from bitinglip.engine.text.forward import CausalModel, measure_traits

WITHOUT = {"mamba", "mamba2"}
UNKNOWN = {"zamba2"}
LLAMA: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def read_config(model: Any) -> dict[str, Any]:
    """As its config.json would have it."""
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    return config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in UNSERVED | UNKNOWN])
def test_keys_and_values_take_as_much_as_the_config_says(architecture: str) -> None:
    model = make_model(architecture)
    measured = measure_traits(CausalModel(model)).bytes_per_token
    assert measure_kv_bytes(read_config(model), weight_dtype="F32") == (measured or None)
    assert (measured == 0) == (architecture in WITHOUT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", sorted(UNSERVED | UNKNOWN))
def test_of_what_no_config_tells_nothing_is_said(architecture: str) -> None:
    assert measure_kv_bytes(read_config(make_model(architecture))) is None


@pytest.mark.parametrize(
    ("changes", "weight_dtype", "expected"),
    [
        ({"dtype": "bfloat16"}, "F32", 256),
        ({"torch_dtype": "float16"}, "F32", 256),
        ({"torch_dtype": "float32"}, "BF16", 512),
        ({}, "F32", 512),
        ({}, "F8_E4M3", 256),
        ({"multi_query": True}, "BF16", 64),
        ({"num_kv_shared_layers": 1}, "BF16", 128),
        ({"num_kv_shared_layers": 5}, "BF16", None),
        ({"is_encoder_decoder": True}, "BF16", None),
        ({"num_hidden_layers": None}, "BF16", None),
        ({"hidden_size": None}, "BF16", None),
        ({"num_attention_heads": 0}, "BF16", None),
        ({"num_hidden_layers": 10**30}, "BF16", None),
        ({"layer_types": [{}, [], "full_attention"]}, "BF16", 128),
        ({"attn_layer_period": "x", "attn_layer_offset": {}}, "BF16", 256),
        ({"model_type": ["mamba"]}, "BF16", 256),
        ({"attn_config": {"kv_n_heads": 1}}, "BF16", 64),
    ],
)
def test_a_config_is_read_with_care(changes: dict[str, Any], weight_dtype: str, expected: int | None) -> None:
    config = {**LLAMA, **changes}
    assert measure_kv_bytes(config, weight_dtype=weight_dtype) == expected
    assert measure_kv_bytes({"text_config": config}, weight_dtype=weight_dtype) == expected


def test_configs_within_configs_end_somewhere() -> None:
    config: dict[str, Any] = dict(LLAMA)
    for _ in range(500):
        config = {"text_config": config}
    assert measure_kv_bytes(config) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"n_positions": 7}}, 7),
        ({"max_position_embeddings": True, "n_ctx": 9}, 9),
        ({"max_position_embeddings": 10**12}, None),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
)
def test_the_context_is_a_number_or_unknown(config: dict[str, Any], expected: int | None) -> None:
    assert find_context_tokens(config) == expected


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", "text"),
        ("GPT2LMHeadModel", "text"),
        ("Qwen2VLForConditionalGeneration", "text"),
        ("BertModel", "embedding"),
        ("XLMRobertaForMaskedLM", "embedding"),
        ("BertForSequenceClassification", None),
        ("unknown", None),
    ],
)
def test_an_architectures_name_says_what_it_is_for(architecture: str, expected: str | None) -> None:
    assert find_type(architecture) == expected
    assert find_type(find_architecture({"architectures": [architecture]})) == expected


def test_without_an_architecture_the_family_is_named() -> None:
    assert find_architecture({"model_type": "llama", "architectures": []}) == "llama"
    assert find_architecture({"architectures": "Llama"}) == "unknown"
