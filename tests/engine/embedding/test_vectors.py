"""What the vectors are: the same alone and in company, with and without padding, whatever the model."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_driver import EmbeddingDriver, pool_by_hand
from tiny_encoders import BEGIN_ID, CONTEXT, ENCODERS, END_ID, make_encoder, make_framing_tokenizer, save
from tiny_models import make_model, make_tokenizer

from bitinglip.demo import model_folder

CLOSE = 1e-5
TEXTS = ["hello", "hi", "the quick brown fox", "jumps over the lazy dog, and over another one", "x"]


@pytest.fixture(scope="session")
def bert() -> Any:
    return make_encoder("bert")


@pytest.fixture
def bert_folder(bert: Any, tmp_path: Path) -> Path:
    return save(bert, tmp_path / "bert")


@pytest.fixture
def drive(bert_folder: Path) -> EmbeddingDriver:
    return EmbeddingDriver(bert_folder)


@pytest.mark.parametrize("family", ENCODERS)
def test_each_text_of_a_batch_gets_the_vector_that_it_gets_alone(family: str, tmp_path: Path) -> None:
    driver = EmbeddingDriver(save(make_encoder(family), tmp_path))
    expected = np.concatenate([driver.ask(text) for text in TEXTS])
    steps = len(driver.batches)

    together = driver.ask(*TEXTS)

    assert np.abs(together - expected).max() < CLOSE
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 0.01, "texts are told apart"
    if family == "fnet":
        assert all(len(set(map(len, batch))) == 1 for batch in driver.batches[steps:]), "padding would reach its rows"
    else:
        assert len(driver.batches) - steps < len(TEXTS)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral_sliding", "bloom_alibi", "mamba"])
@pytest.mark.filterwarnings("ignore")
def test_a_causal_model_gives_vectors_too(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    tokenizer = make_tokenizer()
    driver = EmbeddingDriver(save(model, tmp_path, tokenizer))

    together = driver.ask(*TEXTS)

    expected = [pool_by_hand(model.base_model, tokenizer(text).input_ids) for text in TEXTS]
    assert np.abs(together - expected).max() < CLOSE


def test_the_demo_model_gives_vectors_too() -> None:
    driver = EmbeddingDriver(model_folder())
    texts = ["What is the capital of Peru?", "What is the capital city of Peru?", "What is 17 plus 25?"]

    together = driver.ask(*texts)

    assert np.abs(together - np.concatenate([driver.ask(text) for text in texts])).max() < CLOSE
    assert together[0] @ together[1] > together[0] @ together[2]


def test_the_vector_is_the_mean_over_real_tokens(drive: EmbeddingDriver, bert: Any) -> None:
    together = drive.ask("hi", "hello you", normalize=False)

    tokenizer = make_framing_tokenizer()
    expected = [pool_by_hand(bert, tokenizer(text).input_ids, normalize=False) for text in ("hi", "hello you")]
    assert len(drive.batches) == 1, "one of them was padded"
    assert np.abs(together - expected).max() < CLOSE


def test_what_a_model_leaves_in_padding_never_counts(drive: EmbeddingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = drive.ask("hi", "hello you")
    model, padding = drive.engine._encoder._model, drive.engine._encoder._padding_id
    forward = model.forward

    def spoil(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.last_hidden_state[inputs["input_ids"] == padding] = float("nan")
        return output

    monkeypatch.setattr(model, "forward", spoil)
    assert np.array_equal(drive.ask("hi", "hello you"), expected)


def test_texts_of_many_requests_share_batches_and_none_is_changed_by_it(bert_folder: Path) -> None:
    source = random.Random(7)
    driver = EmbeddingDriver(bert_folder, step_tokens=300)
    asked = {
        f"r{number}": ["".join(source.choices("abcdef ", k=source.randint(1, 90))) for _ in range(source.randint(1, 9))]
        for number in range(30)
    }
    for name, texts in asked.items():
        driver.add(name, *texts)
        driver.step(source.randint(0, 1))
    driver.run()
    alone = EmbeddingDriver(bert_folder)
    for name, texts in asked.items():
        assert np.abs(driver.vectors(name) - np.concatenate([alone.ask(text) for text in texts])).max() < CLOSE
    assert len(driver.batches) < sum(map(len, asked.values())) / 3
    for batch in driver.batches:
        assert len(batch) * max(map(len, batch)) <= 300


def test_a_vector_has_length_1_unless_told_otherwise(drive: EmbeddingDriver) -> None:
    assert np.abs(np.linalg.norm(drive.ask(*TEXTS), axis=1) - 1).max() < 1e-6
    raw = drive.ask(*TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1
    assert np.abs(drive.ask(*TEXTS) - raw / np.linalg.norm(raw, axis=1, keepdims=True)).max() < CLOSE


def test_fewer_dimensions_are_the_first_ones_normalised_again(drive: EmbeddingDriver) -> None:
    whole = drive.ask(*TEXTS)

    cut = drive.ask(*TEXTS, dimensions=8)

    assert cut.shape == (5, 8)
    assert np.abs(cut - whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)).max() < CLOSE
    assert np.array_equal(drive.ask("hi", dimensions=8, normalize=False)[0], drive.ask("hi", normalize=False)[0, :8])
    drive.add("a", "hi", dimensions=8)
    drive.run()
    assert drive.finished("a").result["dimensions"] == 8


def test_more_dimensions_than_the_model_has_are_refused(drive: EmbeddingDriver) -> None:
    drive.add("a", "hi", dimensions=33)
    drive.run()
    assert (drive.failure("a").code, drive.failure("a").retryable) == ("invalid_request", False)
    assert "the model's vectors have 32" in drive.failure("a").message


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_a_long_text_is_cut_at_the_context_and_keeps_its_frame(family: str, tmp_path: Path) -> None:
    driver = EmbeddingDriver(save(make_encoder(family), tmp_path))
    driver.add("a", "short", "y" * CONTEXT, "z" * 10 * CONTEXT, "w" * (CONTEXT - 2))
    driver.run()

    assert driver.finished("a").result["truncated"] == 2
    by_length = sorted(ids for batch in driver.batches for ids in batch)
    long = [ids for ids in by_length if len(ids) == CONTEXT]
    assert len(long) == 3
    assert all((ids[0], ids[-1]) == (BEGIN_ID, END_ID) for ids in long)
    assert driver.finished("a").usage.prompt_tokens == 3 * CONTEXT + 7
    assert np.abs(driver.vectors("a")[1] - driver.ask("y" * (CONTEXT - 2))[0]).max() < CLOSE


def test_no_truncation_or_padding_that_came_with_the_tokenizer_is_applied(bert: Any, tmp_path: Path) -> None:
    tokenizer = make_framing_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    save(bert, tmp_path, tokenizer)
    assert '"max_length": 4' in (tmp_path / "tokenizer.json").read_text()

    driver = EmbeddingDriver(tmp_path)

    driver.ask("a word", "or two, or three")
    assert sorted(len(ids) for batch in driver.batches for ids in batch) == [8, 18]


def test_numbers_are_the_shortest_that_give_the_same_float32_back(drive: EmbeddingDriver) -> None:
    drive.add("a", *TEXTS)
    drive.run()
    numbers = [number for vector in drive.finished("a").result["embeddings"] for number in vector]
    assert all(type(number) is float for number in numbers)
    assert [repr(number) for number in numbers] == [repr(float(str(np.float32(number)))) for number in numbers]
