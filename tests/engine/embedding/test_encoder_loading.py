"""Which folders become an embedding engine, how they pool, and what the others are told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from embedding_driver import EmbeddingDriver
from tiny_encoders import ENCODERS, make_encoder, make_framing_tokenizer, save
from tiny_models import SMALL, make_tokenizer
from transformers import AutoModelForMaskedLM, T5EncoderModel

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.embedding import load
from bitinglip.errors import ConfigurationError, InvalidModelError

LIBRARY = "sentence_transformers.models"
PLAIN = {"0": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_encoder("bert"), tmp_path)


def describe(folder: Path, modules: dict[str, str], **pooling: bool) -> None:
    """Write what sentence-transformers keeps beside a model."""
    listed = [
        {"idx": index, "name": path, "path": "" if kind == "Transformer" else path, "type": f"{LIBRARY}.{kind}"}
        for index, (path, kind) in enumerate(modules.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))


@pytest.mark.parametrize(
    ("mode", "place"),
    [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1), ("pooling_mode_mean_tokens", None)],
)
def test_a_model_pools_as_its_folder_says(folder: Path, mode: str, place: int | None) -> None:
    describe(folder, PLAIN, pooling_mode_max_tokens=False, **{mode: True})
    driver = EmbeddingDriver(folder)

    found = driver.ask("hi", "hello you", normalize=False)

    assert len(driver.batches) == 1
    model, tokenizer = make_encoder("bert"), make_framing_tokenizer()
    for vector, text in zip(found, ("hi", "hello you"), strict=True):
        with torch.inference_mode():
            hidden = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].numpy()
        assert np.abs(vector - (hidden.mean(axis=0) if place is None else hidden[place])).max() < 1e-5


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ({**PLAIN, "3_Dense": "Dense"}, {"pooling_mode_mean_tokens": True}, "has Dense, which is not computed here"),
        (PLAIN, {"pooling_mode_max_tokens": True}, "it pools by pooling_mode_max_tokens"),
        (PLAIN, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "tokens and pooling_mode_cls"),
        (PLAIN, {}, "it pools by nothing"),
    ],
)
def test_a_model_that_does_more_or_pools_otherwise_is_refused(
    folder: Path, modules: dict[str, str], pooling: dict[str, bool], words: str
) -> None:
    describe(folder, modules, **pooling)
    with pytest.raises(InvalidModelError, match=words):
        EmbeddingDriver(folder)


def test_the_length_that_the_model_was_made_for_is_its_context(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10, "do_lower_case": false}')
    driver = EmbeddingDriver(folder)
    driver.add("a", "x" * 30)
    driver.run()
    assert driver.finished("a").result["truncated"] == 1
    assert driver.finished("a").usage.prompt_tokens == 10


def test_the_tokenizer_may_know_a_shorter_context(tmp_path: Path) -> None:
    tokenizer = make_framing_tokenizer()
    tokenizer.model_max_length = 12
    driver = EmbeddingDriver(save(make_encoder("bert"), tmp_path, tokenizer))
    driver.add("a", "x" * 30)
    driver.run()
    assert driver.finished("a").usage.prompt_tokens == 12


def test_a_checkpoint_with_a_head_and_without_a_pooler_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, options = ENCODERS["bert"]
    auto: Any = AutoModelForMaskedLM
    whole = auto.from_config(getattr(transformers, name)(**options)).eval()
    driver = EmbeddingDriver(save(whole, tmp_path))
    with torch.inference_mode():
        ids = torch.tensor([make_framing_tokenizer()("hello").input_ids])
        expected = whole.bert(ids).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(driver.ask("hello", normalize=False)[0] - expected).max() < 1e-5


def test_an_encoder_saved_without_its_decoder_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder: Any = T5EncoderModel(transformers.T5Config(**ENCODERS["t5"][1]))
    encoder.eval()
    driver = EmbeddingDriver(save(encoder, tmp_path))
    with torch.inference_mode():
        ids = torch.tensor([make_framing_tokenizer()("hello").input_ids])
        expected = encoder(ids).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(driver.ask("hello", normalize=False)[0] - expected).max() < 1e-5


def test_missing_weights_that_count_are_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InvalidModelError, match=r"weights are missing, the first is 'encoder\.layer\.2"):
        EmbeddingDriver(folder)


def test_half_precision_pools_in_float32(folder: Path) -> None:
    whole, half = EmbeddingDriver(folder), EmbeddingDriver(folder, dtype="bfloat16")
    expected, found = whole.ask("hello you"), half.ask("hello you")
    assert half.engine._encoder.dtype == torch.bfloat16
    assert 0 < np.abs(found - expected).max() < 0.1
    rounded = torch.tensor(found).bfloat16().double().numpy()
    assert not np.array_equal(found, rounded), "its numbers are finer than the model's"


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_looks_at_images_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    save(transformers.ViTModel(config), tmp_path)
    with pytest.raises(InvalidModelError, match="it reads pixel_values, not text"):
        EmbeddingDriver(tmp_path)


def test_a_model_that_makes_images_is_refused(tmp_path: Path, folder: Path) -> None:
    pipeline = tmp_path / "pipeline"
    (pipeline / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InvalidModelError, match="it makes images and gives no vectors"):
        load(EngineConfig(model="tiny", folder=pipeline))


def test_a_model_that_needs_more_than_text_is_refused(tmp_path: Path) -> None:
    text = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    heads = {"num_attention_heads": 4}
    config = transformers.CLIPConfig(text_config={**text, **heads}, vision_config={**vision, **heads})
    save(transformers.CLIPModel(config), tmp_path)
    with pytest.raises(InvalidModelError, match="it has no one table of token embeddings"):
        EmbeddingDriver(tmp_path)


def test_no_folder_and_an_unknown_dtype_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no folder"):
        load(EngineConfig(model="tiny", folder=None))
    with pytest.raises(ConfigurationError, match="float8"):
        load(EngineConfig(model="tiny", folder=folder, dtype="float8"))


def test_a_model_over_several_devices_gives_the_same_vectors(tmp_path: Path) -> None:
    model: Any = transformers.LlamaModel(transformers.LlamaConfig(**SMALL))
    save(model, tmp_path, make_tokenizer())
    expected = EmbeddingDriver(tmp_path).ask("hello", "you")
    assert np.abs(EmbeddingDriver(tmp_path, devices=("cpu", "cpu")).ask("hello", "you") - expected).max() < 1e-6


def test_a_closed_engine_holds_nothing(folder: Path) -> None:
    driver = EmbeddingDriver(folder)
    assert driver.engine.memory_bytes > 0
    driver.add("a", "hello")
    driver.engine.close()
    assert driver.engine.memory_bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_gpu_gives_the_vectors_that_the_cpu_gives(folder: Path) -> None:
    texts: list[Any] = [f"text number {number} " + "x" * number for number in range(30)]
    found = EmbeddingDriver(folder, devices=("cuda:0",)).ask(*texts)
    assert np.abs(found - EmbeddingDriver(folder).ask(*texts)).max() < 1e-4
