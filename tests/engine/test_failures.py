import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_driver import Driver, fail_forwards
from tiny_models import make_model

from bitinglip.engine.base import Failed
from bitinglip.engine.text import layers
from bitinglip.engine.text.admission import CALM_STEPS
from bitinglip.errors import EngineBrokenError

Drive = Callable[..., Driver]
CPU_OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


def out_of_memory(number: int) -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory") if number % 2 else RuntimeError(CPU_OUT_OF_MEMORY)


@pytest.mark.parametrize("seed", range(4))
def test_running_out_of_memory_again_and_again_changes_no_text(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    driver = drive()
    source = random.Random(seed)
    fail_forwards(driver, monkeypatch, lambda number, rows: out_of_memory(number) if source.random() < 0.08 else None)
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 24)
    prompts = {f"r{number}": "x" * source.randint(1, 90) + str(number) for number in range(8)}
    for name, prompt in prompts.items():
        driver.add(name, prompt, logprobs=0)
        driver.step(source.randint(0, 3))
    driver.run()
    plain = drive()
    for name, prompt in prompts.items():
        assert driver.made(name) == plain.expect(prompt)
        assert driver.text(name) == driver.result(name)["text"]


@pytest.mark.parametrize("architecture", ["mamba2", "granite_hybrid", "mistral_sliding"])
@pytest.mark.filterwarnings("ignore")
def test_states_that_a_failed_step_has_overwritten_are_made_again(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(make_model(architecture))
    fail_forwards(driver, monkeypatch, lambda number, rows: out_of_memory(0) if rows > 1 and number % 4 == 0 else None)
    for name in ("a", "b", "c"):
        driver.add(name, f"hello {name}", logprobs=0)
    driver.run()
    for name in ("a", "b", "c"):
        assert driver.made(name) == driver.expect(f"hello {name}")


@pytest.mark.parametrize("nth", range(5, 21, 3))
def test_memory_that_runs_out_while_rows_move_changes_no_text(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    driver = drive()
    allocate, count = layers._allocate, 0

    def fail_once(*arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == nth:
            raise out_of_memory(0)
        return allocate(*arguments)

    monkeypatch.setattr(layers, "_allocate", fail_once)
    for number in range(6):
        driver.add(f"r{number}", f"hello {number}", logprobs=0, max_tokens=8 + number)
        driver.step(2)
    driver.run()
    assert count >= nth
    for number in range(6):
        assert driver.made(f"r{number}") == driver.expect(f"hello {number}", 8 + number)


def test_the_oldest_rows_go_on_when_memory_runs_out(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(max_rows=4)
    for name in "abcde":
        driver.add(name, name, max_tokens=30)
    driver.step(5)
    fail_forwards(driver, monkeypatch, lambda number, rows: out_of_memory(0) if rows > 2 else None)
    driver.step(2)
    assert [row.id for row in driver.engine._rows] == ["a", "b"]
    assert [row.id for row in driver.engine._intake.waiting] == ["c", "d", "e"]
    assert driver.engine._batch.span.row_capacity == 2, "what the others held is free"
    driver.run()
    assert {driver.result(name)["finish_reason"] for name in "abcde"} <= {"length", "stop"}


def test_the_row_limit_rises_again_after_calm(drive: Drive) -> None:
    driver = drive(max_rows=4)
    limit = driver.engine._limit
    limit.lower(1)
    for _ in range(CALM_STEPS):
        assert limit.now == 1
        limit.raise_after_calm()
    assert limit.now == 2


def test_a_request_without_memory_even_alone_fails_and_frees_the_way(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    driver.add("large", "x" * 100)
    driver.add("small", "hello", logprobs=0)
    read = driver.engine._model.read

    def fail_large(prompts: list[list[int]], *rest: Any, **options: Any) -> Any:
        if max(map(len, prompts)) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(prompts, *rest, **options)

    monkeypatch.setattr(driver.engine._model, "read", fail_large)
    driver.run()
    assert driver.failure("large").code == "out_of_memory"
    assert driver.made("small") == driver.expect("hello")


def test_only_the_culprit_of_a_failed_prefill_fails(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    read = driver.engine._model.read

    def fail_on_q(prompts: list[list[int]], *rest: Any, **options: Any) -> Any:
        if any(driver.tokenizer("q").input_ids[0] in prompt for prompt in prompts):
            raise ValueError("no q, please")
        return read(prompts, *rest, **options)

    monkeypatch.setattr(driver.engine._model, "read", fail_on_q)
    for prompt in ("one", "two", "q", "three"):
        driver.add(prompt, prompt, logprobs=0)
    driver.run()
    assert driver.failure("q").code == "engine_error"
    assert "no q, please" in driver.failure("q").message
    for prompt in ("one", "two", "three"):
        assert driver.made(prompt) == driver.expect(prompt)


def test_only_the_culprit_of_a_failed_step_fails(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    for name in "abcd":
        driver.add(name, f"hello {name}", logprobs=0)
    driver.step(4)
    culprit = driver.engine._rows[1]

    blames = []

    def blame(number: int, rows: int) -> BaseException | None:
        if culprit not in driver.engine._rows:
            return None
        blames.append(rows)
        return ValueError("a fault in the model")

    fail_forwards(driver, monkeypatch, blame)
    driver.run()
    assert driver.failure(culprit.id).code == "engine_error"
    assert blames == [4, 1], "found by running alone, once"
    for name in set("abcd") - {culprit.id}:
        assert driver.made(name) == driver.expect(f"hello {name}")
        assert driver.text(name) == driver.result(name)["text"]


def test_a_row_whose_numbers_overflow_fails_alone(drive: Drive) -> None:
    driver = drive()
    for name in ("a", "b"):
        driver.add(name, f"hello {name}", logprobs=0)
    driver.step(3)
    last = driver.engine._rows[-1].id
    with torch.inference_mode():
        for layer in driver.engine._batch.layers:
            layer.values[1] = torch.nan
    driver.step()
    assert "not finite" in driver.failure(last).message
    driver.add("c", "hi", logprobs=0)
    driver.run()
    survivor = ({"a", "b"} - {last}).pop()
    assert driver.made(survivor) == driver.expect(f"hello {survivor}")
    assert driver.made("c") == driver.expect("hi"), "the NaN left in the row's place must not reach its successor"


@pytest.mark.parametrize("step", [1, 2])
def test_a_poisoned_device_breaks_the_engine(drive: Drive, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    driver = drive()
    poison = torch.AcceleratorError("CUDA error: device-side assert triggered")
    fail_forwards(driver, monkeypatch, lambda number, rows: poison if number == step else None)
    driver.add("a", "hello")
    with pytest.raises(EngineBrokenError, match="device-side assert"):
        driver.step(step)


@pytest.mark.parametrize("seed", range(4))
def test_many_random_requests_with_random_cancels_all_end_once_and_right(drive: Drive, seed: int) -> None:
    driver = drive(max_rows=6)
    source = random.Random(seed)
    prompts = {f"r{number}": "".join(source.choices("abc ", k=source.randint(1, 80))) + "x" for number in range(48)}
    cancelled = set()
    for name, prompt in prompts.items():
        driver.add(name, prompt, logprobs=0, max_tokens=source.randint(1, 16))
        driver.step(source.randint(0, 2))
        if source.random() < 0.3:
            victim = source.choice(list(prompts))
            driver.engine.cancel(victim)
            cancelled.add(victim)
    driver.run()
    for name, prompt in prompts.items():
        if isinstance(driver.end(name), Failed):
            assert driver.failure(name).code == "cancelled"
            assert name in cancelled
        else:
            made = driver.made(name)
            assert made == driver.expect(prompt)[: len(made)]


@pytest.mark.parametrize("fails_at", [None, 4, 9, 14, 17, 20])
def test_a_batch_that_is_never_empty_moves_back_to_its_left_edge(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, fails_at: int | None
) -> None:
    driver = drive(max_rows=3)
    move_columns, calls = layers.AttentionRows.move_columns, 0

    def move(self: Any, old: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise out_of_memory(0)
        move_columns(self, old)

    monkeypatch.setattr(layers.AttentionRows, "move_columns", move)
    if fails_at is None:
        # A step without a column to write to would fail, and be made good by running its rows alone.
        monkeypatch.setattr(driver.engine, "_blame_decode", lambda failure: pytest.fail(str(failure)))
    prompts = {f"r{number}": "x" * (number % 7) + f"hello {number}" for number in range(40)}
    for name, prompt in prompts.items():
        driver.add(name, prompt, logprobs=0)
        driver.step(3)
        assert driver.engine.busy
    driver.run()
    assert calls >= 20
    for name, prompt in prompts.items():
        assert driver.made(name) == driver.expect(prompt)


def test_a_text_that_cannot_be_made_fails_alone(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    for name in ("a", "b"):
        driver.add(name, f"hello {name}", logprobs=0)
    driver.step(4)
    row = next(row for row in driver.engine._rows if row.id == "a")

    def fail(_: int) -> str:
        raise ValueError("no such token")

    monkeypatch.setattr(row._detokeniser, "push", fail)
    driver.run()
    assert "no such token" in driver.failure("a").message
    assert driver.made("b") == driver.expect("hello b")
