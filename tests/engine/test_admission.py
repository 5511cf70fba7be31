import random
from collections.abc import Callable

import pytest
from engine_driver import Driver

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.text.admission import KvBudget
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import LoadedModel
from bitinglip.engine.text.prefill import Pace, take_group
from bitinglip.errors import ModelTooLargeError

Drive = Callable[..., Driver]


def make_tight(drive: Drive, tokens: int, max_rows: int = 16) -> Driver:
    """An engine with memory for so many tokens, all rows together."""
    driver = drive(max_rows=max_rows)
    driver.engine._budget = KvBudget(tokens * 256, 256, 0)
    driver.engine._reader._memory = driver.engine._budget.longest
    return driver


def count_tokens(driver: Driver) -> int:
    """Tokens that the engine has memory for at this moment."""
    return (driver.engine.memory_bytes - sum(driver.engine._weights.values())) // 256


@pytest.mark.parametrize("seed", range(6))
def test_keys_and_values_never_take_more_than_the_budget(drive: Drive, seed: int) -> None:
    driver = make_tight(drive, 900)
    source = random.Random(seed)
    prompts = {f"r{number}": "x" * source.randint(1, 120) + str(number) for number in range(30)}
    most_rows = 0
    for name, prompt in prompts.items():
        driver.add(name, prompt, logprobs=0, max_tokens=source.randint(1, 40))
        for _ in range(source.randint(0, 4)):
            driver.step()
            assert count_tokens(driver) <= 900
            most_rows = max(most_rows, len(driver.engine._rows))
    while driver.engine.busy:
        driver.step()
        assert count_tokens(driver) <= 900
        most_rows = max(most_rows, len(driver.engine._rows))
    assert most_rows > 2
    for name, prompt in prompts.items():
        made = driver.made(name)
        assert made == driver.expect(prompt, 40)[: len(made)]


def test_a_request_that_does_not_fit_now_waits(drive: Drive) -> None:
    driver = make_tight(drive, 260)
    driver.add("first", "x" * 60, max_tokens=20)
    driver.step()
    driver.add("second", "x" * 60, max_tokens=20)
    driver.step(2)
    assert [row.id for row in driver.engine._live()] == ["first"]
    driver.run()
    assert driver.result("second")["finish_reason"] in {"length", "stop"}


def test_a_request_that_can_never_fit_fails_and_names_the_numbers(drive: Drive) -> None:
    driver = make_tight(drive, 260)
    driver.add("large", "x" * 200, max_tokens=100)
    driver.run()
    failure = driver.failure("large")
    assert failure.code == "prompt_too_long"
    assert "300 tokens of memory" in failure.message
    assert f"{driver.engine._budget.longest:,}" in failure.message


def test_a_request_that_fits_without_the_other_engines_runs_alone(drive: Drive) -> None:
    driver = drive()
    weights, logits = sum(driver.engine._weights.values()), 16 * 272 * 4 * 4
    traits = driver.engine._traits
    little = weights + logits + 2 * 100 * traits.bytes_per_token
    config = EngineConfig(model="tiny", folder=None, memory_bytes=little, whole_bytes=10 * little)
    driver.engine = TextEngine(config, LoadedModel(driver.model, driver.tokenizer, frozenset()))
    driver.add("short", "hello", max_tokens=30, logprobs=0)
    driver.add("long", "x" * 200, max_tokens=50, logprobs=0)
    driver.step(3)
    assert [row.id for row in driver.engine._live()] == ["short"]
    driver.run()
    assert len(driver.made("long")) == 50


def test_the_longest_request_is_exactly_what_fits_alone() -> None:
    budget = KvBudget(100_000, 10, 7)
    assert budget.fits([budget.longest], [budget.longest])
    assert not budget.fits([budget.longest + 1], [budget.longest + 1])


def test_a_model_that_leaves_no_room_is_refused_with_the_numbers(drive: Drive) -> None:
    driver = drive()
    weights = sum(driver.engine._weights.values())
    config = EngineConfig(model="tiny", folder=None, memory_bytes=weights)
    with pytest.raises(ModelTooLargeError, match=f"{weights:,} for weights"):
        TextEngine(config, LoadedModel(driver.model, driver.tokenizer, frozenset()))


def test_no_more_rows_than_allowed_compute_at_once(drive: Drive) -> None:
    driver = drive(max_rows=3)
    for number in range(8):
        driver.add(str(number), f"hello {number}")
    while driver.engine.busy:
        driver.step()
        assert len(driver.engine._live()) <= 3
    assert all(driver.result(str(number)) for number in range(8))


def test_requests_are_served_in_order_of_arrival(drive: Drive) -> None:
    driver = drive(max_rows=1)
    for number in range(5):
        driver.add(str(number), f"hello {number}", max_tokens=3)
    driver.run()
    assert list(driver.events) == ["0", "1", "2", "3", "4"]


def test_every_running_row_gets_a_token_each_step_while_a_long_prompt_is_read(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 16)
    for name in ("a", "b", "c"):
        driver.add(name, f"hello {name}", max_tokens=200, logprobs=0, temperature=1, seed=1)
    driver.step(3)
    driver.add("long", "x" * 400, max_tokens=4, logprobs=0)
    steps = 0
    while not driver.events["long"] or driver.engine._long:
        before = {row.id: len(row.made) for row in driver.engine._rows}
        driver.step()
        after = {row.id: len(row.made) for row in driver.engine._rows}
        assert all(after.get(name, before[name] + 1) == before[name] + 1 for name in before)
        steps += 1
    assert steps >= 25
    driver.run()
    assert driver.made("long") == driver.expect("x" * 400, 4)


def done(driver: Driver) -> set[str]:
    return {name for name, events in driver.events.items() if type(events[-1]).__name__ in {"Finished", "Failed"}}


def test_a_short_prompt_overtakes_a_long_one_that_is_being_read(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 16)
    driver.add("long", "x" * 400, max_tokens=4)
    driver.step(3)
    driver.add("short", "hello", max_tokens=2)
    driver.step(4)
    assert "short" in done(driver)
    assert "long" not in done(driver)


def test_prompts_of_like_length_are_read_together(drive: Drive) -> None:
    driver = drive()
    for name, length in (("a", 10), ("b", 40), ("c", 12), ("d", 11), ("e", 9)):
        driver.add(name, "x" * length)
    driver.engine._intake.check_some()
    rows = list(driver.engine._intake.waiting)

    def names(chunk: int, *, pads: bool = True) -> list[str]:
        return [row.id for row in take_group(rows, chunk, pads=pads)]

    assert names(48) == ["a", "d", "e", "c"]
    assert names(30) == ["a", "d"]
    assert names(21) == ["a"]
    assert names(5) == ["a"]
    assert names(300, pads=False) == ["a"]
    rows[3].alone = True
    assert names(48) == ["a", "e", "c"]
    rows[0].alone = True
    assert names(48) == ["a"]


def test_a_chunk_may_cost_less_than_two_steps_of_the_rows_it_holds_up() -> None:
    pace = Pace(256, 4_096)
    for _ in range(50):
        pace.note_step(0.1)
        pace.note_chunk(0.1 + 0.001 * 64, 64)
    tokens = pace.chunk(decoding=8)
    assert 0.1 < 0.1 + 0.001 * tokens <= 0.2
    assert pace.chunk(decoding=0) > tokens
    assert pace.chunk(decoding=2, reading=8) > tokens


def test_a_chunk_is_never_too_small_to_get_on_nor_too_large_for_memory() -> None:
    pace = Pace(256, 512)
    pace.note_step(0.001)
    pace.note_chunk(5.0, 256)
    assert pace.chunk(decoding=1) == 16
    for _ in range(60):
        pace.note_chunk(0.001, 512)
    assert pace.chunk(decoding=0) == 512
