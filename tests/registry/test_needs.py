"""What the registry records of a model's files."""

from pathlib import Path

import pytest

from bitinglip.domain.models import Manifest, ModelFile, ModelSource
from bitinglip.errors import InvalidModelError
from bitinglip.registry.needs import describe_model, fill_record
from bitinglip.store.entries import ModelRecord
from tests.registry.model_files import COMMIT, LLAMA, make_weights, write_files

MANIFEST = Manifest(COMMIT, (ModelFile("config.json", 2, git_sha1="a" * 40),))
RECORD = ModelRecord(
    "org/name", ModelSource.HUB, type="text", repo="org/name", manifest=MANIFEST, licence="mit", tags=("tiny",)
)


def test_a_record_is_filled_with_what_the_files_say_and_keeps_what_the_hub_said(tmp_path: Path) -> None:
    write_files(tmp_path, {"config.json": LLAMA, "model.safetensors": make_weights()})
    assert fill_record(RECORD, describe_model(tmp_path)) == ModelRecord(
        "org/name",
        ModelSource.HUB,
        type="text",
        repo="org/name",
        manifest=MANIFEST,
        weight_bytes=(tmp_path / "model.safetensors").stat().st_size,
        parameters=11,
        dtype="F32",
        architecture="LlamaForCausalLM",
        context_tokens=512,
        kv_bytes_per_token=128,
        licence="mit",
        tags=("tiny",),
    )


@pytest.mark.parametrize(("architecture", "expected"), [("BertModel", "embedding"), ("BertForTokenTagging", "text")])
def test_the_files_say_what_a_model_is_for_where_they_can(tmp_path: Path, architecture: str, expected: str) -> None:
    config = {**LLAMA, "architectures": [architecture]}
    write_files(tmp_path, {"config.json": config, "model.safetensors": make_weights()})
    assert fill_record(RECORD, describe_model(tmp_path)).type == expected


def test_a_folder_that_cannot_be_used_is_not_described(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"no config\.json"):
        describe_model(tmp_path)
