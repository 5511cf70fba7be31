"""A model that cannot be used is refused when it is asked for, naming what is wrong and what to do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from bitinglip.store.database import Database
from tests.factories import execute, make_worker

CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128}


def make_weights(tensors: dict[str, Any] | None = None, data: bytes = b"\x00" * 16) -> bytes:
    """A safetensors file."""
    header = json.dumps(tensors or {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that may be used."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "model.safetensors").write_bytes(make_weights())
    return made


def ask(client: Client, model: Path | str, **payload: Any) -> None:
    client.submit("text", model=str(model), prompt="Hello", **payload)


def test_a_folder_with_safetensors_is_taken(client: Client, folder: Path) -> None:
    ask(client, folder, max_tokens=127)


@pytest.mark.parametrize("model", ["nonsense", "x" * 400, "~nobody-here/model", "/no/such/folder"])
def test_a_model_that_nobody_knows_is_named_with_the_known_ones(client: Client, database: Database, model: str) -> None:
    make_worker(database, models=("held-by-a-worker",))

    with pytest.raises(ModelNotFoundError, match=r"not known; name one of \(demo, demo-image, held-by-a-worker\)"):
        ask(client, model)
    assert execute(database, "SELECT count(*) FROM tasks") == [(0,)]


def test_a_model_that_only_a_worker_holds_is_taken(client: Client, database: Database) -> None:
    make_worker(database, kinds=("text",), models=("held-by-a-worker",))

    handle = client.submit("text", model="held-by-a-worker", prompt="Hello")

    assert handle.status is Status.PENDING


def test_a_model_that_a_worker_has_measured_is_taken(client: Client, database: Database) -> None:
    execute(database, "INSERT INTO models (name, weight_bytes) VALUES ('measured', 5)")

    handle = client.submit("text", model="measured", prompt="Hello")

    assert handle.status is Status.PENDING


def test_a_model_of_a_worker_that_is_gone_is_not_known(client: Client, database: Database) -> None:
    make_worker(database, models=("held-by-a-worker",), lease_seconds=-1)

    with pytest.raises(ModelNotFoundError):
        ask(client, "held-by-a-worker")


@pytest.mark.parametrize("max_tokens", [128, 5_000])
def test_more_tokens_than_the_context_has_are_refused(client: Client, folder: Path, max_tokens: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"max_tokens: {max_tokens}: model .* takes 128 tokens"):
        ask(client, folder, max_tokens=max_tokens)


def test_pickled_weights_are_refused(client: Client, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(InvalidModelError, match=r"only pickled weights \(pytorch_model.bin\); use a folder with safe"):
        ask(client, folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_that_came_with_a_model_is_refused(client: Client, folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "evil.Model"}}))

    with pytest.raises(InvalidModelError, match=rf"{re.escape(name)} has auto_map"):
        ask(client, folder)


@pytest.mark.parametrize(
    "content",
    [
        make_weights()[:-1],
        make_weights() + b"\x00",
        make_weights()[:30],
        b"",
        b"1234",
        make_weights({"w": {"dtype": "F32", "shape": [4], "data_offsets": [4, 16]}}),
        make_weights({"w": {"dtype": "F32"}}),
        (2).to_bytes(8, "little") + b"[]",
        (5).to_bytes(8, "little") + b"\xff\xff\xff\xff\xff",
        (2**62).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_damaged_safetensors_file_is_refused(client: Client, folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)

    with pytest.raises(InvalidModelError, match=r"damaged: .*; fetch it again"):
        ask(client, folder)


def test_a_missing_shard_is_named(client: Client, folder: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InvalidModelError, match=r"model-00002-of-00002.safetensors is missing"):
        ask(client, folder)


@pytest.mark.parametrize("content", [None, "not json", "[]"])
def test_a_folder_without_a_readable_config_is_refused(client: Client, folder: Path, content: str | None) -> None:
    (folder / "config.json").unlink() if content is None else (folder / "config.json").write_text(content)

    with pytest.raises(InvalidModelError, match=r"config\.json"):
        ask(client, folder)


def test_one_bad_request_of_many_records_none(client: Client, database: Database, folder: Path) -> None:
    from bitinglip import make_request

    good = make_request("echo", {})
    bad = make_request("text", {"prompt": "x", "max_tokens": 999}, model=str(folder))

    with pytest.raises(InvalidRequestError):
        client.submit_many([good, bad])
    assert execute(database, "SELECT count(*) FROM tasks") == [(0,)]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A folder with a pipeline that draws, as far as its index says."""
    made = tmp_path / "pipeline"
    (made / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (made / "model_index.json").write_text(json.dumps(index))
    (made / "unet" / "config.json").write_text("{}")
    (made / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(make_weights())
    return made


def test_a_model_that_writes_is_refused_for_pictures_and_the_other_way_round(
    client: Client, database: Database, folder: Path, pipeline: Path
) -> None:
    client.submit("image", model=str(pipeline), prompt="a red circle")

    for model in ("demo", str(folder)):
        with pytest.raises(InvalidRequestError, match=r"model: .* for 'text' tasks; name one for 'image' tasks"):
            client.submit("image", model=model, prompt="a red circle")
    with pytest.raises(InvalidRequestError, match=r"model: .* for 'image' tasks; name one for 'text' tasks"):
        ask(client, pipeline)
    with pytest.raises(InvalidRequestError, match=r"model: .* for 'image' tasks; name one for 'embedding' tasks"):
        client.submit("embedding", model=str(pipeline), input=["hello"])
    assert execute(database, "SELECT count(*) FROM tasks") == [(1,)]


@pytest.mark.parametrize(("name", "source"), [("org/painter", "hub"), ("painter", "folder")])
def test_what_a_registered_model_is_for_is_known(client: Client, database: Database, name: str, source: str) -> None:
    sql = "INSERT INTO models (name, source, type, weight_bytes) VALUES (:name, :source, 'image', 5)"
    execute(database, sql, name=name, source=source)

    client.submit("image", model=name, prompt="a red circle")

    with pytest.raises(InvalidRequestError, match="it is a model for 'image' tasks; name one for 'text' tasks"):
        ask(client, name)


def test_a_model_of_no_known_type_is_left_to_the_worker(client: Client, database: Database) -> None:
    execute(database, "INSERT INTO models (name, weight_bytes) VALUES ('measured', 5)")

    ask(client, "measured")
    client.submit("image", model="measured", prompt="a red circle")
