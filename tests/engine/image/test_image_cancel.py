"""A cancel takes effect at the next step, and nobody else notices."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from image_driver import ImageDriver, count_drawing_threads

from bitinglip.engine.base import Failed

Drive = Callable[..., ImageDriver]


@pytest.mark.parametrize("after", range(9))
def test_a_cancelled_request_ends_at_the_next_step_wherever_its_batch_stands(drive: Drive, after: int) -> None:
    driver = drive()
    driver.add("stays", seed=1)
    driver.add("goes", seed=2, count=2)
    driver.step(after)
    driver.engine.cancel("goes")
    driver.step()
    assert driver.failure("goes").code == "cancelled"
    driver.run()
    expected = drive().draw(prompt="picture stays", seed=1)
    assert abs(driver.pipeline.pixels[1] - expected).max() <= 1e-5
    assert driver.result("stays")["images"][0]["size"] > 0


def test_a_batch_that_nobody_waits_for_ends_without_another_step(drive: Drive) -> None:
    driver = drive()
    for name in ("a", "b"):
        driver.add(name)
    driver.step_until("a", 2)
    (drawing,) = driver.engine._drawings.values()
    for name in ("a", "b"):
        driver.engine.cancel(name)
    driver.step()
    assert drawing.step == 2
    assert {driver.failure(name).code for name in ("a", "b")} == {"cancelled"}
    assert not driver.engine.busy
    assert count_drawing_threads() == 0
    assert driver.pipeline.pixels == {}
    driver.add("c")
    driver.run()
    assert driver.result("c")["steps"] == 4


def test_a_cancelled_picture_is_neither_decoded_nor_written(drive: Drive) -> None:
    driver = drive()
    driver.add("goes", seed=2)
    driver.add("stays", seed=1)
    driver.step_until("stays", 4)
    driver.engine.cancel("goes")
    driver.run()
    assert driver.pipeline.pixels[1].std() > 0
    assert driver.pipeline.pixels[2].std() == 0
    assert not (driver.spool / "goes").exists()


def test_closing_ends_what_stands_still(drive: Drive) -> None:
    driver = drive()
    driver.add("a")
    driver.add("b", steps=6)
    driver.step(6)
    assert count_drawing_threads() == 2
    driver.engine.close()
    assert count_drawing_threads() == 0
    assert driver.engine.memory_bytes == 0


def test_a_request_that_has_not_begun_is_cancelled(drive: Drive) -> None:
    driver = drive()
    driver.add("a")
    driver.engine.cancel("a")
    driver.engine.cancel("unknown")
    driver.step()
    assert driver.failure("a").code == "cancelled"
    assert not driver.engine.busy


@pytest.mark.parametrize("seed", range(3))
def test_many_random_requests_with_random_cancels_all_end_once_and_right(drive: Drive, seed: int) -> None:
    driver, alone = drive(max_rows=4), drive()
    source = random.Random(seed)
    cancelled = set()
    requests: dict[str, dict[str, Any]] = {
        f"r{number}": {"seed": 100 * number, "steps": source.randint(1, 3), "count": source.randint(1, 3)}
        for number in range(12)
    }
    for name, options in requests.items():
        driver.add(name, prompt=name, **options)
        driver.step(source.randint(0, 3))
        if source.random() < 0.3:
            victim = source.choice(list(requests))
            driver.engine.cancel(victim)
            cancelled.add(victim)
    driver.run()
    assert count_drawing_threads() == 0
    for name, options in requests.items():
        if isinstance(driver.end(name), Failed):
            assert driver.failure(name).code == "cancelled"
            assert name in cancelled
        else:
            expected = alone.draw(prompt=name, **{**options, "count": 1})
            assert abs(driver.pipeline.pixels[options["seed"]] - expected).max() <= 1e-5
            assert len(driver.result(name)["images"]) == options["count"]
