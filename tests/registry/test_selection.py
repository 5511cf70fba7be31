"""Which files of a repository are fetched, and which repositories are refused before any weight is."""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import pytest

from bitinglip.domain.models import ModelFile, ModelName
from bitinglip.engine.json_objects import MAX_INDEX_BYTES
from bitinglip.errors import InvalidModelError
from bitinglip.registry.hub.client import HubModel
from bitinglip.registry.hub.selection import MAX_TEXT_BYTES, AlteredFileError, choose_files
from tests.registry.model_files import COMMIT, make_repository

Content = bytes | dict[str, Any] | list[Any]

TEXT = dict.fromkeys(("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"), b"{}")
ONE_FILE: dict[str, Content] = {**TEXT, "model.safetensors": b"w"}


def index_of(*shards: str) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}


def choose(files: Mapping[str, Content]) -> set[str]:
    """The chosen paths; whatever was read for it must be an index."""
    model, contents = make_repository(files)
    read: list[str] = []

    def read_file(path: str) -> bytes:
        read.append(path)
        return contents[path]

    manifest = choose_files(model, read_file)
    assert manifest.commit == COMMIT
    assert all(path.endswith("json") and ("index" in path or path == "modules.json") for path in read)
    return {file.path for file in manifest.files}


def test_a_model_in_one_file_comes_with_its_configs_and_tokenizer() -> None:
    extra = dict.fromkeys(("tokenizer.model", "merges.txt", "vocab.txt", "chat_template.jinja", "LICENSE"), b"x")
    nested = {"additional_chat_templates/tools.jinja": b"x"}
    assert choose({**ONE_FILE, **extra, **nested}) == {*ONE_FILE, *extra, *nested}


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "model-q4.gguf",
        "modeling_custom.py",
        "flax_model.msgpack",
        "tf_model.h5",
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/openvino_model.bin",
        "original/consolidated.00.pth",
        "original/params.json",
        "coreml/model.safetensors",
        "training_args.bin",
        "adapter_config.json",
        "adapter_model.safetensors",
        "picture.png",
        "README.md",
        "licence.py",
        "runs/events.json",
    ],
)
def test_what_is_not_needed_is_left(path: str) -> None:
    assert choose({**ONE_FILE, path: b"{}"}) == set(ONE_FILE)


def test_shards_are_those_of_the_index() -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": b"w" for number in (1, 2)}
    files: dict[str, Content] = {**TEXT, **shards, "model.safetensors.index.json": index_of(*shards)}
    assert choose({**files, "model.safetensors": b"w", "model-00003-of-00003.safetensors": b"w"}) == set(files)


def test_a_variant_is_taken_only_where_there_is_no_plain_one() -> None:
    variant = {**TEXT, "model.fp16.safetensors": b"w"}
    assert choose({**variant, "model.int8.safetensors": b"w"}) == set(variant)
    sharded = {"model.fp16-00001-of-00001.safetensors": b"w"}
    files: dict[str, Content] = {**TEXT, **sharded, "model.safetensors.index.fp16.json": index_of(*sharded)}
    assert choose(files) == set(files)
    assert choose({**files, "model.safetensors": b"w"}) == set(ONE_FILE)


PIPELINE: dict[str, Content] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
    },
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"w",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.fp16.safetensors": b"w",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"w",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "scheduler/scheduler_config.json": b"{}",
}


def test_a_pipeline_is_the_folders_that_its_index_names() -> None:
    left = {
        "v1-5-pruned.safetensors": b"w",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"w",
        "unet/diffusion_pytorch_model.bin": b"w",
        "vae/diffusion_pytorch_model.safetensors": b"w",
        "image_encoder/model.safetensors": b"w",
        "config.json": b"{}",
        "tokenizer_2/vocab.json": b"{}",
    }
    assert choose({**PIPELINE, **left}) == set(PIPELINE)


def test_the_modules_of_an_embedding_model_come_with_it() -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    files: dict[str, Content] = {
        **ONE_FILE,
        "modules.json": modules,
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"w",
        "config_sentence_transformers.json": b"{}",
        "sentence_bert_config.json": b"{}",
    }
    assert choose({**files, "3_Other/config.json": b"{}"}) == set(files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**TEXT, "pytorch_model.bin": b"w"}, r"only pickled weights \(pytorch_model.bin\).*safetensors"),
        ({**TEXT, "original/x.pth": b"w"}, r"only pickled weights \(original/x.pth\)"),
        ({"q4.gguf": b"w"}, r"only GGUF weights \(q4.gguf\)"),
        (TEXT, "no weights; use"),
        ({**TEXT, "adapter_model.safetensors": b"w"}, r"no model.safetensors .* only adapter_model.safetensors"),
        ({**TEXT, "model-00001-of-00002.safetensors": b"w"}, "no index of its parts"),
        ({"model.safetensors": b"w"}, "no config.json"),
        ({"model_index.json": PIPELINE["model_index.json"]}, "names unet, which it does not have"),
        (
            {name: b for name, b in PIPELINE.items() if name != "unet/diffusion_pytorch_model.safetensors"}
            | {"unet/diffusion_pytorch_model.bin": b"w"},
            r"unet: only pickled weights \(diffusion_pytorch_model.bin\)",
        ),
        (
            {"model_index.json": {"scheduler": ["diffusers", "X"]}, "scheduler/scheduler_config.json": b"{}"},
            "no weights",
        ),
        ({**PIPELINE, "model_index.json": {"unet": ["my_unet", "Net"]}}, "unet of 'my_unet', which runs code"),
        ({**PIPELINE, "model_index.json": {"unet": [["x"], "Net"]}}, "which runs code"),
        ({**PIPELINE, "model_index.json": {"_class_name": ["pipeline", "Mine"]}}, "a pipeline of its own, which runs"),
        ({**PIPELINE, "model_index.json": {"../x": ["diffusers", "X"]}}, "no sub-folder"),
        ({**ONE_FILE, "modules.json": [{"path": "", "type": "custom_st.Transformer"}]}, "custom_st.*which runs code"),
        ({**ONE_FILE, "modules.json": [{"path": "../x", "type": "sentence_transformers.models.Dense"}]}, "no sub-fold"),
        ({**ONE_FILE, "modules.json": {}}, "no list of objects"),
    ],
)
def test_a_repository_without_usable_weights_is_refused_with_what_was_found(
    files: Mapping[str, Content], words: str
) -> None:
    with pytest.raises(InvalidModelError, match=words):
        choose(files)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (index_of("../../etc/passwd.safetensors"), "no safetensors file beside it"),
        (index_of("/etc/model.safetensors"), "no safetensors file beside it"),
        (index_of("sub/model.safetensors"), "no safetensors file beside it"),
        (index_of("pytorch_model.bin"), "no safetensors file beside it"),
        (index_of("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors is missing"),
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ([], "not an object"),
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_an_index_that_names_anything_else_than_its_shards_is_refused(index: Content, words: str) -> None:
    shards = {"sub/model.safetensors": b"w", "pytorch_model.bin": b"w", "model-00001-of-00002.safetensors": b"w"}
    with pytest.raises(InvalidModelError, match=words):
        choose({**TEXT, **shards, "model.safetensors.index.json": index})


def test_an_index_of_too_many_files_is_refused_though_all_are_there() -> None:
    shards = {f"{number}.safetensors": b"" for number in range(10_001)}
    with pytest.raises(InvalidModelError, match="names 10,001 files"):
        choose({**TEXT, **shards, "model.safetensors.index.json": index_of(*shards)})


def test_an_index_that_is_too_large_is_never_read() -> None:
    digest = hashlib.sha256(b"").hexdigest()
    sizes = {"model.safetensors.index.json": MAX_INDEX_BYTES + 1, "config.json": 2, "model.safetensors": 1}
    files = tuple(ModelFile(path, size, sha256=digest) for path, size in sizes.items())
    with pytest.raises(InvalidModelError, match="50,000,000 that are read"):
        choose_files(HubModel(ModelName("org/name"), COMMIT, files), pytest.fail)


def test_a_tokenizer_of_impossible_size_is_refused() -> None:
    digest = hashlib.sha256(b"").hexdigest()
    sizes = {"tokenizer.json": MAX_TEXT_BYTES + 1, "config.json": 2, "model.safetensors": 1}
    files = tuple(ModelFile(path, size, sha256=digest) for path, size in sizes.items())
    with pytest.raises(InvalidModelError, match=r"tokenizer.json has 200,000,001 bytes"):
        choose_files(HubModel(ModelName("org/name"), COMMIT, files), pytest.fail)


@pytest.mark.parametrize("in_git", [False, True])
def test_an_index_is_believed_only_if_it_is_the_one_that_the_hub_has(in_git: bool) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    shards = {"model-00001-of-00001.safetensors": b"w"}
    model, contents = make_repository({**TEXT, **shards, "model.safetensors.index.json": index})
    if in_git:
        sha1 = hashlib.sha1(b"blob %d\0%s" % (len(index), index)).hexdigest()
        kept = (file for file in model.files if not file.path.endswith("index.json"))
        files = (*kept, ModelFile("model.safetensors.index.json", len(index), git_sha1=sha1))
        model = HubModel(model.name, model.commit, files)
    assert len(choose_files(model, contents.__getitem__).files) == len(contents)
    spoiled = bytearray(index)
    spoiled[20] ^= 1
    with pytest.raises(AlteredFileError, match="other bytes than its own") as caught:
        choose_files(model, lambda path: bytes(spoiled))
    assert caught.value.retryable


def test_whatever_a_repository_has_only_files_of_it_are_chosen_and_none_that_is_never_kept() -> None:
    generator = random.Random(20)
    names = [*ONE_FILE, "pytorch_model.bin", "x.gguf", "evil.py", "unet/model.safetensors", "unet/config.json", "a.png"]
    for _ in range(300):
        picked = generator.sample(names, generator.randint(1, len(names)))
        try:
            chosen = choose(dict.fromkeys(picked, b"{}"))
        except InvalidModelError:
            assert "model.safetensors" not in picked or "config.json" not in picked
            continue
        assert chosen <= set(picked)
        assert not any(path.endswith((".bin", ".gguf", ".py", ".png")) for path in chosen)
        assert {"model.safetensors", "config.json"} <= chosen
