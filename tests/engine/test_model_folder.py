"""What a model's folder may hold, and what is refused before any of it is used."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import Driver
from tiny_models import make_model, make_tokenizer

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.folder import inspect_folder
from bitinglip.engine.json_objects import MAX_CONFIG_BYTES
from bitinglip.engine.text.loading import load_model
from bitinglip.errors import InvalidModelError
from tests.registry.model_files import LLAMA, WEIGHTS, frame, make_header, make_weights, write_files

BIG = make_weights({"x": ("I8", [9])})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "model", {"config.json": LLAMA, "model.safetensors": make_weights()})


def test_a_model_is_described_by_its_headers_and_its_config(folder: Path) -> None:
    found = inspect_folder(folder)
    assert (found.path, found.architecture, found.type) == (folder, "LlamaForCausalLM", "text")
    assert (found.parameters, found.dtype) == (11, "F32")
    assert found.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert found.context_tokens == 512
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2


def test_what_transformers_saves_is_described_as_it_is(llama: Any, tmp_path: Path) -> None:
    half = make_model("llama").to(torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = inspect_folder(tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in llama.parameters())
    assert (found.dtype, found.type, found.kv_bytes_per_token) == ("BF16", "text", 128)


def test_a_variant_that_is_the_only_one_is_loaded(llama: Any, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path, variant="fp16")
    make_tokenizer(chat=True).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert inspect_folder(tmp_path).variant == "fp16"
    loaded = load_model(EngineConfig(model="tiny", folder=tmp_path))
    assert Driver(loaded.model).ask("hello", max_tokens=8) == Driver(llama).ask("hello", max_tokens=8)


PIPELINE = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "image_encoder": [None, None],
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_files(
        tmp_path / "pipeline",
        {
            "model_index.json": PIPELINE,
            "transformer/config.json": {},
            "transformer/diffusion_pytorch_model.safetensors": make_weights(),
            "text_encoder/config.json": {},
            "text_encoder/model.safetensors": BIG,
            "scheduler/scheduler_config.json": {},
            "vae/diffusion_pytorch_model.safetensors": b"of another pipeline",
        },
    )


def test_a_pipeline_is_the_sum_of_its_components(pipeline: Path) -> None:
    found = inspect_folder(pipeline)
    assert (found.architecture, found.type, found.parameters) == ("FluxPipeline", "image", 20)
    assert (found.dtype, found.weight_bytes) == ("I8", len(make_weights()) + len(BIG))
    assert (found.context_tokens, found.kv_bytes_per_token) == (None, None)


def test_an_embedding_model_counts_its_modules(folder: Path) -> None:
    kind = "sentence_transformers.models"
    modules = [{"path": "", "type": f"{kind}.Transformer"}, {"path": "2_Dense", "type": f"{kind}.Dense"}]
    write_files(folder, {"modules.json": modules, "2_Dense/config.json": {}, "2_Dense/model.safetensors": BIG})
    found = inspect_folder(folder)
    assert (found.type, found.parameters) == ("embedding", 20)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("config.json", {**LLAMA, "auto_map": {}}, "auto_map, which runs code"),
        ("config.json", {**LLAMA, "text_config": {"auto_map": {"AutoModel": "evil.Model"}}}, "auto_map"),
        ("config.json", json.dumps({**LLAMA, "auto_map": {}}).replace("auto_map", "auto\\u005fmap").encode(), "auto_m"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "tokenizer_config.json has auto"),
        ("preprocessor_config.json", {"auto_map": {}}, "auto_map"),
        ("video_processor.json", [{"auto_map": {}}], "auto_map"),
        ("chat_template.json", {"auto_map": {}}, "auto_map"),
        ("sub/config.json", {"auto_map": {}}, "sub/config.json has auto_map"),
        ("modules.json", [{"path": "", "type": "evil.Module"}], "evil.Module.*runs code"),
        ("modules.json", [{"path": "..", "type": "sentence_transformers.models.Dense"}], "no sub-folder"),
        ("modules.json", [1], "no list of objects"),
        ("config.json", b"[1]", "not an object"),
        ("config.json", b"\xff", "cannot be read"),
        ("config.json", b"[" * 100_000, "cannot be read"),
        ("generation_config.json", b"{", "cannot be read"),
        ("config.json", b" " * (MAX_CONFIG_BYTES + 1), "more than 10,000,000 bytes"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../model.safetensors"}}, "no safetensors file beside"),
        ("model.safetensors.index.json", {"weight_map": {"a": "b.safetensors"}}, "b.safetensors is missing"),
        ("model.safetensors.index.json", {"weight_map": []}, "no weight_map"),
    ],
)
def test_a_config_that_would_run_code_or_is_none_is_refused(folder: Path, path: str, content: Any, words: str) -> None:
    write_files(folder, {path: content})
    with pytest.raises(InvalidModelError, match=words):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformer": ["pipeline_evil", "Net"]}, "transformer of 'pipeline_evil', which runs code"),
        ({"transformer": [{}, "Net"]}, "which runs code"),
        ({"_class_name": ["pipeline", "Evil"]}, "a pipeline of its own, which runs code"),
        ({"..": ["diffusers", "Net"]}, "no sub-folder"),
        ({"a/../../b": ["diffusers", "Net"]}, "no sub-folder"),
    ],
)
def test_a_pipeline_with_classes_of_its_own_is_refused(pipeline: Path, changes: dict[str, Any], words: str) -> None:
    write_files(pipeline, {"model_index.json": {**PIPELINE, **changes}})
    with pytest.raises(InvalidModelError, match=words):
        inspect_folder(pipeline)


def test_weights_that_are_no_safetensors_are_refused_wherever_they_are(folder: Path, pipeline: Path) -> None:
    (pipeline / "text_encoder" / "model.safetensors").rename(pipeline / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(InvalidModelError, match=r"text_encoder: only pickled weights \(pytorch_model.bin\)"):
        inspect_folder(pipeline)
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(InvalidModelError, match=r"only GGUF weights \(model.gguf\)"):
        inspect_folder(folder)
    (folder / "model.gguf").rename(folder / "weights.safetensors")
    with pytest.raises(InvalidModelError, match=r"no model.safetensors .* only weights.safetensors"):
        inspect_folder(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="no weights; use"):
        inspect_folder(folder)
    (pipeline / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (pipeline / "text_encoder" / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidModelError, match="no weights; use"):
        inspect_folder(pipeline)


def spoil(change: Callable[[dict[str, Any]], Any]) -> bytes:
    header = make_header()
    change(header)
    return frame(json.dumps(header).encode(), make_weights()[-38:])


BYTE = b'"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "longer than the file"),
        (b"\x00" * 8, "longer than the file"),
        (b"\xff" * 100, "longer than the file"),
        (frame(b"[]", b""), "header cannot be read"),
        (frame(b"{{", b""), "header cannot be read"),
        (frame(b"[" * 100_000, b""), "header cannot be read"),
        (frame(b"{%s, %s}" % (BYTE, BYTE), b"x"), "one name is there twice"),
        (make_weights()[:-1], "it has 37 bytes of tensors, its header says 38"),
        (make_weights() + b"x", "it has 39 bytes of tensors, its header says 38"),
        (spoil(lambda header: header["a"].update(dtype="F33")), "a has the dtype 'F33', which is unknown"),
        (spoil(lambda header: header["a"].update(dtype=["F32"])), "header cannot be read"),
        (spoil(lambda header: header["a"].update(dtype="F16")), "a has 32 bytes, not those of its shape"),
        (spoil(lambda header: header["a"].update(shape=[4, 3])), "a has 32 bytes, not those of its shape"),
        (spoil(lambda header: header["a"].update(shape=[-4, -2])), "a has a shape or a range that is none"),
        (spoil(lambda header: header["a"].update(shape=[4.0, 2])), "a has a shape or a range that is none"),
        (spoil(lambda header: header["a"].update(shape=[True, 8])), "a has a shape or a range that is none"),
        (spoil(lambda header: header["a"].update(shape=8)), "header cannot be read"),
        (spoil(lambda header: header["a"].update(data_offsets=[-32, 0])), "a has a shape or a range that is none"),
        (spoil(lambda header: header["a"].update(data_offsets=[0])), "header cannot be read"),
        (spoil(lambda header: header["a"].update(data_offsets=[32, 0])), "a has -32 bytes"),
        (spoil(lambda header: header["a"].update(data_offsets=[6, 38])), "overlap or leave gaps"),
        (spoil(lambda header: header["b"].update(data_offsets=[31, 37])), "overlap or leave gaps"),
        (spoil(lambda header: header.pop("a")), "overlap or leave gaps"),
        (spoil(lambda header: header.pop("b")), "it has 38 bytes of tensors, its header says 32"),
        (spoil(lambda header: header["a"].pop("shape")), "header cannot be read"),
        (spoil(lambda header: header.update(a=5)), "header cannot be read"),
    ],
)
def test_weights_are_believed_only_if_header_tensors_and_length_agree(folder: Path, content: bytes, words: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelError, match=words):
        inspect_folder(folder)


def test_tensors_of_no_elements_and_files_of_no_tensors_are_sound(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(
        make_weights({"none": ("F32", [0, 5]), **WEIGHTS, "scalar": ("F32", [])})
    )
    assert inspect_folder(folder).parameters == 12
    (folder / "model.safetensors").write_bytes(frame(b"{}", b""))
    assert inspect_folder(folder).dtype is None


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    for path in ("generation_config.json", "deep/notes.txt"):
        link = folder / path
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(outside, link.parent))
        with pytest.raises(InvalidModelError, match=f"its {path} is a link to {outside}, outside of it"):
            inspect_folder(folder)
        link.unlink()
    (folder / "all").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InvalidModelError, match="its all is a link to"):
        inspect_folder(folder)
    (folder / "all").unlink()
    (folder / "gone.json").symlink_to("nowhere")
    with pytest.raises(InvalidModelError, match=r"its gone.json cannot be read"):
        inspect_folder(folder)


def test_links_within_the_folder_and_links_to_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.1")
    (folder / "model.safetensors").symlink_to("weights.1")
    assert inspect_folder(folder).parameters == 11
    (tmp_path / "named").symlink_to(folder)
    assert inspect_folder(tmp_path / "named").parameters == 11


def test_a_pipe_in_a_folder_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer_config.json")
    with pytest.raises(InvalidModelError, match=r"its tokenizer_config.json is no file"):
        inspect_folder(folder)


def make_snapshot(cache: Path, target: Path | None = None) -> Path:
    """A model as huggingface_hub's cache has it; its weights lie at the target."""
    repo = cache / "models--org--name"
    blobs = write_files(repo / "blobs", {"config": LLAMA, "weights": make_weights()})
    snapshot = repo / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/config")
    (snapshot / "model.safetensors").symlink_to(target or os.path.relpath(blobs / "weights", snapshot))
    return snapshot


def test_a_snapshot_links_to_the_blobs_of_its_own_model_and_to_no_others(tmp_path: Path) -> None:
    assert inspect_folder(make_snapshot(tmp_path / "sound")).parameters == 11
    others = ("../../refs/main", "../../../models--org--other/blobs/weights", str(tmp_path / "x" / "blobs" / "weights"))
    for number, target in enumerate(others):
        cache = tmp_path / str(number)
        snapshot = make_snapshot(cache, Path(target))
        write_files(cache, {"models--org--name/refs/main": b"x", "models--org--other/blobs/weights": make_weights()})
        write_files(tmp_path / "x", {"blobs/weights": make_weights()})
        assert (snapshot / "model.safetensors").exists()
        with pytest.raises(InvalidModelError, match=r"its model.safetensors is a link to .*, outside of it"):
            inspect_folder(snapshot)
