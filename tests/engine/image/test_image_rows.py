"""A picture does not depend on those that share its batch."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from image_driver import ImageDriver
from tiny_pipelines import FAMILIES

from bitinglip.domain.image_payload import Scheduler
from bitinglip.engine.image.schedulers import find_schedulers

Drive = Callable[..., ImageDriver]


def assert_each_equals_alone(driver: ImageDriver, alone: ImageDriver, requests: dict[str, dict[str, Any]]) -> None:
    for name, options in requests.items():
        driver.add(name, **options)
    driver.run()
    assert len(driver.pipeline.batches) == 1
    drawn = [driver.pipeline.pixels[driver.result(name)["images"][0]["seed"]] for name in requests]
    for pixels, options in zip(drawn, requests.values(), strict=True):
        expected = alone.draw(**options)
        assert abs(pixels - expected).max() <= 1e-5
    assert all(abs(one - other).max() > 0.01 for one, other in pairwise(drawn))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_equals_the_same_request_alone(drive: Drive, family: str) -> None:
    requests: dict[str, dict[str, Any]] = {
        "a": {"prompt": "a", "seed": 1},
        "b": {"prompt": "a blue square", "seed": 2},
        "c": {"prompt": "something altogether different", "seed": 3},
    }
    assert_each_equals_alone(drive(family), drive(family), requests)


@pytest.mark.parametrize("scheduler", Scheduler)
def test_a_row_equals_the_same_request_alone_with_every_scheduler(drive: Drive, scheduler: Scheduler) -> None:
    requests: dict[str, dict[str, Any]] = {
        name: {"prompt": f"a {name} square", "seed": seed, "scheduler": scheduler, "steps": 6, "guidance": 3}
        for name, seed in (("red", 1), ("blue", 2))
    }
    assert_each_equals_alone(drive(), drive(), requests)


def test_a_model_that_learnt_a_flow_goes_with_what_knows_flows() -> None:
    own = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert set(find_schedulers(own)) == {"deis", "dpm_multistep", "dpm_singlestep", "unipc"}
    assert set(find_schedulers(FlowMatchEulerDiscreteScheduler())) == {"euler"}
    assert set(find_schedulers(DPMSolverMultistepScheduler())) == set(Scheduler)
    assert find_schedulers(FlowMatchHeunDiscreteScheduler()) == {}
    assert find_schedulers(DDPMWuerstchenScheduler()) == {}


def test_schedulers_draw_different_pictures(drive: Drive) -> None:
    driver = drive()
    # The two of Euler's are the same as these in other words.
    names = ("ddim", "ddpm", "dpm_multistep", "heun", "pndm", "unipc")
    drawn = [driver.draw(scheduler=name, prompt="a tree") for name in names]
    assert all(abs(one - other).max() > 1e-3 for number, one in enumerate(drawn) for other in drawn[:number])


def test_pictures_of_one_request_have_the_seeds_that_follow(drive: Drive) -> None:
    driver = drive()
    driver.add("several", count=3, seed=40, prompt="a tree")
    driver.run()
    images = driver.result("several")["images"]
    assert [(image["index"], image["seed"]) for image in images] == [(0, 40), (1, 41), (2, 42)]
    drawn = dict(driver.pipeline.pixels)
    for seed in (40, 41, 42):
        assert abs(drawn[seed] - drive().draw(seed=seed, prompt="a tree")).max() <= 1e-5


def test_a_seed_that_was_not_chosen_is_told_and_repeats_the_picture(drive: Drive) -> None:
    driver = drive()
    first = driver.draw(seed=None, prompt="a tree")
    told = driver.result("alone-0")["images"][0]["seed"]
    second = driver.draw(seed=None, prompt="a tree")
    assert abs(first - second).max() > 0.01
    assert np.array_equal(first, drive().draw(seed=told, prompt="a tree"))


def test_an_empty_negative_prompt_shares_no_batch_with_none(drive: Drive) -> None:
    driver = drive()
    driver.add("none", seed=1)
    driver.add("empty", negative_prompt="", seed=2)
    driver.add("some", negative_prompt="rain", seed=3)
    driver.run()
    assert sorted(driver.pipeline.batches) == [[1], [2, 3]]


def test_a_negative_prompt_and_guidance_change_the_picture(drive: Drive) -> None:
    driver = drive()
    plain = driver.draw()
    assert abs(driver.draw(prompt="picture alone-0", negative_prompt="rain") - plain).max() > 1e-4
    assert abs(driver.draw(prompt="picture alone-0", guidance=2) - plain).max() > 1e-4
