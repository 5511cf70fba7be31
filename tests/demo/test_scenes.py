"""The judge of the image demo sees what was drawn, and does not see what was not."""

from random import Random

import numpy as np
import pytest

from bitinglip.demo.images.judge import judge
from bitinglip.demo.images.scenes import ALL_SCENES, COLOURS, SIZE, draw


@pytest.mark.parametrize("noise", [0, 25])
def test_the_judge_finds_the_colours_and_the_shape_of_every_scene(noise: int) -> None:
    rng, random = Random(1), np.random.default_rng(1)
    for scene in ALL_SCENES:
        picture = draw(scene, rng).astype(int)
        spoiled = np.clip(picture + random.integers(-noise, noise + 1, picture.shape), 0, 255).astype(np.uint8)
        verdict = judge(spoiled)
        assert verdict.has_colours_of(scene), (scene, verdict)
        assert verdict.shape == scene.shape, (scene, verdict)


def test_the_judge_sees_no_shape_where_there_is_none() -> None:
    empty = np.full((SIZE, SIZE, 3), COLOURS["blue"], dtype=np.uint8)

    verdict = judge(empty)

    assert (verdict.background, verdict.colour, verdict.shape) == ("blue", None, None)


def test_a_scene_of_another_colour_is_not_right() -> None:
    one, other = ALL_SCENES[0], next(scene for scene in ALL_SCENES if scene.colour != ALL_SCENES[0].colour)

    assert not judge(draw(other, Random(1))).has_colours_of(one)
