"""Folders that become an image engine, and folders that do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tokenizer

from bitinglip.domain.catalogue import get_kind
from bitinglip.engine.base import EngineConfig, EngineRequest, Finished
from bitinglip.engine.image import load
from bitinglip.engine.image.loading import load_pipeline
from bitinglip.engine.text.loading import load_model
from bitinglip.errors import ConfigurationError, InvalidModelError, ModelTooLargeError

Saved = Callable[[str], Path]


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A pipeline that a test may spoil."""
    return Path(shutil.copytree(saved("stable_diffusion"), tmp_path / "pipeline"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_becomes_an_engine_that_draws(folder: Path, tmp_path: Path) -> None:
    engine = get_kind("image").import_engine()(EngineConfig(model="tiny", folder=folder))
    engine.add(EngineRequest("a", {"prompt": "a tree", "steps": 2}, spool=str(tmp_path / "spool")))
    events = []
    while engine.busy:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    assert (tmp_path / "spool" / "0.png").stat().st_size == events[-1].result["images"][0]["size"]


def test_nothing_is_asked_of_the_hub_when_the_safety_checker_is_missing(folder: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(folder / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    pipeline = load_pipeline(EngineConfig(model="tiny", folder=folder))
    assert pipeline.base.safety_checker is None


def test_the_checkpoints_dtype_is_kept_but_for_halves_on_a_cpu(folder: Path) -> None:
    def find_dtype(**options: Any) -> torch.dtype:
        pipeline = load_pipeline(EngineConfig(model="tiny", folder=folder, **options))
        found = {parameter.dtype for part in pipeline.modules() for parameter in part.parameters()}
        assert len(found) == 1
        return found.pop()

    assert find_dtype() == torch.float32
    assert find_dtype(dtype="bfloat16") == torch.bfloat16
    load_pipeline(EngineConfig(model="tiny", folder=folder)).base.to(torch.bfloat16).save_pretrained(folder)
    assert find_dtype() == torch.bfloat16
    load_pipeline(EngineConfig(model="tiny", folder=folder)).base.to(torch.float16).save_pretrained(folder)
    assert find_dtype() == torch.float32


def spoil_pickle(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def spoil_half(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def spoil_part(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def spoil_own_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name=["pipeline.py", "Evil"])


def spoil_unknown_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="NoSuchPipeline")


def spoil_other_task(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="StableDiffusionImageVariationPipeline")


def spoil_config(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_pickle, "unet"),
        (spoil_half, "its header says"),
        (spoil_part, "cannot be loaded|text_encoder"),
        (spoil_own_pipeline, "pipeline"),
        (spoil_unknown_class, "cannot be loaded"),
        (spoil_other_task, "cannot be loaded|draws no pictures from text"),
        (spoil_config, "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    with pytest.raises(InvalidModelError, match=words):
        load(EngineConfig(model="tiny", folder=folder))


def test_a_text_model_draws_no_pictures_and_a_pipeline_writes_no_text(folder: Path, llama: Any, tmp_path: Path) -> None:
    text = tmp_path / "llama"
    llama.save_pretrained(text)
    make_tokenizer().save_pretrained(text)
    with pytest.raises(InvalidModelError, match="LlamaForCausalLM draws no pictures; name a folder with a model_index"):
        load(EngineConfig(model="tiny", folder=text))
    with pytest.raises(InvalidModelError, match="a StableDiffusionPipeline draws pictures"):
        load_model(EngineConfig(model="tiny", folder=folder))


def test_a_model_larger_than_its_budget_is_refused_before_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ModelTooLargeError) as caught:
        load(EngineConfig(model="tiny", folder=folder, memory_bytes=10_000))
    assert caught.value.needed_bytes > 10_000


def test_a_wrong_configuration_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no folder"):
        load(EngineConfig(model="tiny", folder=None))
    with pytest.raises(ConfigurationError, match="float8"):
        load(EngineConfig(model="tiny", folder=folder, dtype="float8"))
