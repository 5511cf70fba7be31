"""What becomes of requests: cancelled, bad, larger than memory, and those beside them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_driver import EmbeddingDriver
from tiny_encoders import make_encoder, save

from bitinglip.engine.base import EngineRequest, Failed, Progress
from bitinglip.engine.embedding import request
from bitinglip.engine.embedding.batching import CALM_STEPS, MIN_STEP_TOKENS, STEP_SECONDS, StepSize
from bitinglip.engine.embedding.engine import READ_CHARS
from bitinglip.engine.text.forward import MODEL_ERRORS
from bitinglip.errors import EngineBrokenError, ModelTooLargeError

TEXTS = [f"text number {number:02}" for number in range(12)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_encoder("bert"), tmp_path_factory.mktemp("bert"))


@pytest.fixture
def driver(folder: Path) -> EmbeddingDriver:
    return EmbeddingDriver(folder)


def test_a_request_of_many_steps_tells_how_far_it_is(folder: Path) -> None:
    driver = EmbeddingDriver(folder, step_tokens=40)
    driver.add("a", *TEXTS)
    driver.run()
    fractions = [event.fraction for event in driver.events["a"] if isinstance(event, Progress)]
    assert fractions == [number / 6 for number in range(1, 6)]
    assert driver.vectors("a").shape == (12, 32)


def test_a_cancelled_request_ends_at_the_next_step_and_leaves_nothing_behind(folder: Path) -> None:
    driver = EmbeddingDriver(folder, step_tokens=40)
    driver.add("gone", *TEXTS)
    driver.add("stays", *TEXTS)
    driver.step(2)
    driver.engine.cancel("gone")
    driver.engine.cancel("never seen")
    driver.step()
    assert driver.failure("gone").code == "cancelled"
    assert driver.failure("gone").usage.prompt_tokens > 0
    batches = len(driver.batches)
    driver.run()
    assert np.array_equal(driver.vectors("stays"), EmbeddingDriver(folder, step_tokens=40).ask(*TEXTS))
    assert len(driver.batches) - batches <= 6, "nothing is computed for one that is gone"
    assert len(driver.engine._queue) == len(driver.engine._unread) == 0


def test_a_request_is_cancelled_before_it_was_looked_at(driver: EmbeddingDriver) -> None:
    driver.add("a", "hi")
    driver.engine.cancel("a")
    driver.run()
    assert driver.failure("a").code == "cancelled"
    assert driver.batches == []


@pytest.mark.parametrize("payload", [{"input": ["fine", ""]}, {"input": []}, {"input": "hi", "truncate": True}, {}])
def test_a_bad_request_fails_alone(driver: EmbeddingDriver, payload: dict[str, Any]) -> None:
    driver.add("good", "hello")
    driver.engine.add(EngineRequest("bad", payload))
    driver.run()
    driver.finished("good")
    assert (driver.failure("bad").code, driver.failure("bad").retryable) == ("invalid_request", False)


def test_more_numbers_than_a_record_may_hold_are_refused(
    driver: EmbeddingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "MAX_FLOATS", 100)
    driver.add("few", *TEXTS[:3])
    driver.add("short", *TEXTS, dimensions=8)
    driver.add("many", *TEXTS[:4])
    driver.run()
    assert driver.vectors("few").shape == (3, 32)
    assert driver.vectors("short").shape == (12, 8)
    assert "with 32 dimensions a task may have 3" in driver.failure("many").message


def test_a_text_without_tokens_or_with_foreign_ones_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = EmbeddingDriver(folder)
    read = driver.engine._reader._tokenizer

    def tokenise(text: str, **options: Any) -> Any:
        encoded = read(text, **options)
        match text:
            case "nothing":
                encoded["input_ids"] = []
            case "foreign":
                encoded["input_ids"][1] = 272
            case "panic":
                raise RuntimeError("a fault in Rust")
        return encoded

    monkeypatch.setattr(driver.engine._reader, "_tokenizer", tokenise)
    for name in ("fine", "nothing", "foreign", "panic"):
        driver.add(name, "first", name)
    driver.run()
    driver.finished("fine")
    assert "input.1: 'nothing': it becomes no token" in driver.failure("nothing").message
    assert "its tokenizer does not belong to it" in driver.failure("foreign").message
    assert driver.failure("panic").code == "invalid_request"


def test_only_the_culprit_of_a_failed_batch_fails(driver: EmbeddingDriver) -> None:
    marked = driver.engine._reader.read(0, "q").ids[1]
    driver.fails = lambda texts: ValueError("no q, please") if any(marked in ids for ids in texts) else None
    driver.add("a", "one", "two")
    driver.add("bad", "three", "q")
    driver.add("c", "four")
    driver.run()
    assert (driver.failure("bad").code, driver.failure("bad").retryable) == ("engine_error", False)
    assert "input.1" in driver.failure("bad").message
    assert "no q, please" in driver.failure("bad").message
    assert driver.vectors("a").shape == (2, 32)
    assert driver.vectors("c").shape == (1, 32)


def test_texts_of_a_failed_batch_run_by_themselves(folder: Path) -> None:
    driver = EmbeddingDriver(folder, step_tokens=50)
    marked = driver.engine._reader.read(0, "q").ids[1]
    failed: list[int] = []

    def fail(texts: list[list[int]]) -> BaseException | None:
        if not any(marked in ids for ids in texts):
            return None
        failed.append(len(texts))
        return ValueError("no q, please")

    driver.fails = fail
    driver.add("first q", "q" + "x" * 12)
    driver.add("longer", "x" * 20)
    driver.add("second q", "x" * 14 + "q")
    driver.step()
    driver.add("late", "x" * 13)
    driver.run()
    assert failed == [2, 1, 1], "then each without the others, be they older or newer"
    driver.finished("longer")
    driver.finished("late")


def test_numbers_that_are_none_fail_their_request_alone(
    driver: EmbeddingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = driver.engine._encoder.encode

    def spoil(texts: list[list[int]]) -> torch.Tensor:
        vectors = encode(texts)
        vectors[1, 3] = torch.inf
        return vectors

    monkeypatch.setattr(driver.engine._encoder, "encode", spoil)
    for name in ("a", "b", "c"):
        driver.add(name, name)
    driver.run()
    ends = {name: driver.events[name][-1] for name in "abc"}
    assert [name for name, end in ends.items() if isinstance(end, Failed)] == ["b"]
    assert "not finite for input.0; try float32" in driver.failure("b").message


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_batches_are_halved_when_memory_runs_out(folder: Path, driver: EmbeddingDriver, kind: str) -> None:
    failure = {
        "cuda": torch.OutOfMemoryError("CUDA out of memory"),
        "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    }[kind]
    driver.fails = lambda texts: failure if len(texts) > 3 else None
    driver.add("a", *TEXTS)
    driver.run()
    assert np.abs(driver.vectors("a") - EmbeddingDriver(folder).ask(*TEXTS)).max() < 1e-5
    sizes = [len(batch) for batch in driver.batches]
    assert sizes[:3] == [12, 6, 3]
    assert sizes.count(3) == 4, "and are not grown at once"


def test_a_text_without_memory_even_alone_may_be_tried_again(driver: EmbeddingDriver) -> None:
    driver.fails = lambda texts: torch.OutOfMemoryError("CUDA out of memory") if max(map(len, texts)) > 20 else None
    driver.add("large", "x" * 40)
    driver.add("small", "hello")
    driver.run()
    assert (driver.failure("large").code, driver.failure("large").retryable) == ("out_of_memory", True)
    driver.finished("small")


def test_memory_bounds_a_batch_and_a_text_that_can_never_fit_is_refused(folder: Path) -> None:
    roomy = EmbeddingDriver(folder)
    weights = roomy.engine.memory_bytes
    two = roomy.engine._encoder.shape.count_bytes(2, 16)
    tight = EmbeddingDriver(folder, memory_bytes=weights + two)
    tight.add("a", *TEXTS)
    tight.add("b", "x" * 62)
    tight.run()
    assert tight.vectors("a").shape == (12, 32)
    assert max(map(len, tight.batches)) == 2
    assert tight.failure("b").code == "prompt_too_long"
    # The others of the process may leave: it runs alone.
    shared = EmbeddingDriver(folder, memory_bytes=weights + two, whole_bytes=weights + 10 * two)
    assert shared.ask("x" * 62).shape == (1, 32)
    with pytest.raises(ModelTooLargeError):
        EmbeddingDriver(folder, memory_bytes=weights)


def test_the_cost_of_a_batch_is_shared_by_tokens(driver: EmbeddingDriver) -> None:
    driver.add("a", "x" * 30)
    driver.add("b", "y" * 14)
    driver.run()
    first, second = driver.finished("a").usage, driver.finished("b").usage
    assert len(driver.batches) == 1
    assert (first.prompt_tokens, second.prompt_tokens, first.completion_tokens) == (32, 16, 0)
    assert first.engine_seconds == pytest.approx(2 * second.engine_seconds)
    assert first.engine_seconds > 0


def test_a_step_reads_no_more_text_than_it_should(driver: EmbeddingDriver) -> None:
    text = "x" * (READ_CHARS // 4)
    driver.add("a", *[text] * 10)
    driver.step()
    assert len(driver.engine._unread) == 6
    assert driver.engine.busy
    assert driver.engine.prefilling
    driver.run()
    assert driver.finished("a").result["truncated"] == 10
    assert not driver.engine.prefilling


def test_a_batch_is_not_mostly_padding(driver: EmbeddingDriver) -> None:
    driver.ask("x" * 60, *"abcdefgh")
    assert len(driver.batches) == 2
    for batch in driver.batches:
        assert 2 * sum(map(len, batch)) >= len(batch) * max(map(len, batch))


def test_the_text_that_waits_longest_is_in_the_next_batch(folder: Path) -> None:
    driver = EmbeddingDriver(folder, step_tokens=30)
    driver.add("long", "x" * 40)
    for number in range(20):
        driver.add(f"short {number}", f"{number}")
    driver.step()
    driver.finished("long")


def test_a_poisoned_device_breaks_the_engine(driver: EmbeddingDriver) -> None:
    poison = torch.AcceleratorError("CUDA error: device-side assert triggered")
    assert isinstance(poison, MODEL_ERRORS)
    driver.fails = lambda texts: poison
    driver.add("a", "hello")
    with pytest.raises(EngineBrokenError, match="device-side assert"):
        driver.step()


@pytest.mark.parametrize("seed", range(3))
def test_many_random_requests_with_cancels_and_failures_all_end_once(folder: Path, seed: int) -> None:
    source = random.Random(seed)
    driver = EmbeddingDriver(folder, step_tokens=200)
    driver.fails = lambda texts: torch.OutOfMemoryError("no") if len(texts) > 1 and source.random() < 0.2 else None
    texts = {f"r{n}": ["x" * source.randint(1, 80) + str(n)] * source.randint(1, 6) for n in range(40)}
    cancelled = set()
    for name, given in texts.items():
        driver.add(name, *given)
        driver.step(source.randint(0, 2))
        if source.random() < 0.3:
            cancelled.add(victim := source.choice(list(texts)))
            driver.engine.cancel(victim)
    driver.run()
    for name, given in texts.items():
        if isinstance(driver.events[name][-1], Failed):
            assert driver.failure(name).code == "cancelled"
            assert name in cancelled
        else:
            assert driver.vectors(name).shape == (len(given), 32)


def test_a_step_is_as_large_as_the_clock_allows_and_grows_again_after_memory_ran_out() -> None:
    size = StepSize(first=256, most=4_096)
    for _ in range(3):
        size.note(size.tokens, STEP_SECONDS / 100)
    assert size.tokens == 2_048
    size.note(10, STEP_SECONDS / 100)
    assert size.tokens == 2_048, "a small step says little"
    size.note(2_048, 4 * STEP_SECONDS)
    assert size.tokens == 512
    size.note(512, 1_000 * STEP_SECONDS)
    assert size.tokens == MIN_STEP_TOKENS
    size.halve(1_000)
    for _ in range(CALM_STEPS):
        assert size.tokens == 500
        size.note(500, STEP_SECONDS / 100)
    size.note(500, STEP_SECONDS / 100)
    assert size.tokens == 1_000
