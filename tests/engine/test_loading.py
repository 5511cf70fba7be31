import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engine_driver import Driver
from tiny_models import SMALL, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from bitinglip.engine.base import EngineConfig, EngineRequest, Finished
from bitinglip.engine.folder import inspect_folder
from bitinglip.engine.text import load, loading
from bitinglip.engine.text.loading import load_model, plan_devices
from bitinglip.errors import ConfigurationError, InvalidModelError


@pytest.fixture
def folder(llama: Any, tmp_path: Path) -> Path:
    """The tiny Llama as a user would have it."""
    llama.save_pretrained(tmp_path)
    make_tokenizer(chat=True).save_pretrained(tmp_path)
    return tmp_path


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}))


def test_a_folder_becomes_an_engine_that_answers(folder: Path, llama: Any) -> None:
    engine = load(EngineConfig(model="tiny", folder=folder))
    engine.add(EngineRequest("a", {"prompt": "hello", "max_tokens": 8, "temperature": 0}))
    events = []
    while engine.busy:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    assert events[-1].result == Driver(llama, chat=True).ask("hello", max_tokens=8)


def test_the_checkpoints_dtype_is_kept_unless_another_is_asked_for(folder: Path, llama: Any, tmp_path: Path) -> None:
    assert load_model(EngineConfig(model="tiny", folder=folder)).model.dtype == torch.float32
    assert load_model(EngineConfig(model="tiny", folder=folder, dtype="bfloat16")).model.dtype == torch.bfloat16
    half = make_model("llama").to(torch.bfloat16)
    half.save_pretrained(folder)
    assert load_model(EngineConfig(model="tiny", folder=folder)).model.dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match="float8"):
        load_model(EngineConfig(model="tiny", folder=folder, dtype="float8"))


def spoil_auto_map(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})


def spoil_tokenizer_code(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})


def spoil_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def spoil_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no header")


def spoil_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_weights(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=3)


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_everything(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_auto_map, "auto_map"),
        (spoil_tokenizer_code, "auto_map"),
        (spoil_pickle, r"only pickled weights \(pytorch_model.bin\)"),
        (spoil_half, "its header says"),
        (spoil_header, "its header is longer than the file"),
        (spoil_shard, "model-00002-of-00002.safetensors is missing"),
        (spoil_weights, "weights are missing"),
        (spoil_config, "cannot be read"),
        (spoil_tokenizer, "tokenizer"),
        (spoil_everything, "config.json"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused_with_the_reason(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    with pytest.raises(InvalidModelError, match=words):
        load_model(EngineConfig(model="tiny", folder=folder))


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"no config\.json"):
        inspect_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="has no folder"):
        load_model(EngineConfig(model="tiny", folder=None))


def test_one_model_is_loaded_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_weights = loading._load_weights
    locked = []

    def look(*arguments: Any) -> Any:
        locked.append(loading._load_lock.locked())
        return load_weights(*arguments)

    monkeypatch.setattr(loading, "_load_weights", look)
    load_model(EngineConfig(model="tiny", folder=folder))
    assert locked == [True]


def test_layers_follow_one_another_over_the_devices() -> None:
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 8})
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    devices = ["cuda:0", "cuda:1", "cuda:2"]
    placed = plan_devices(skeleton, devices, torch.float32, dict.fromkeys(devices, 10**9))
    layers = [placed[f"model.layers.{index}"] for index in range(8)]
    assert layers == sorted(layers)
    assert set(layers) == set(devices)
    assert placed["model.embed_tokens"] == "cuda:0"


def test_a_model_placed_by_accelerate_answers_as_before(llama: Any, folder: Path) -> None:
    engine = load(EngineConfig(model="tiny", folder=folder, devices=("cpu", "cpu")))
    engine.add(EngineRequest("a", {"prompt": "hello", "max_tokens": 8, "temperature": 0}))
    events = []
    while engine.busy:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    assert events[-1].result == Driver(llama, chat=True).ask("hello", max_tokens=8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_gpu_makes_the_text_that_the_cpu_makes(llama: Any, folder: Path) -> None:
    engine = load(EngineConfig(model="tiny", folder=folder, devices=("cuda:0",), memory_bytes=10**9))
    for number in range(6):
        engine.add(EngineRequest(str(number), {"prompt": f"hello {number}", "max_tokens": 8, "temperature": 0}))
    results = {}
    while engine.busy:
        results |= {e.request_id: e.result for e in engine.step() if isinstance(e, Finished)}
    plain = Driver(llama, chat=True)
    assert results == {str(number): plain.ask(f"hello {number}", max_tokens=8) for number in range(6)}
