"""The shipped image model: small, and right through the engine that everything is drawn with."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from bitinglip.demo.images import image_model_folder
from bitinglip.demo.images.judge import judge
from bitinglip.demo.images.scenes import ALL_SCENES, SIZE
from bitinglip.engine.base import Engine, EngineConfig, EngineRequest, Failed, Finished
from bitinglip.engine.image import load
from bitinglip.registry.locate import BUNDLED

MAX_BYTES = 8_000_000
PROMPTS = 100


@pytest.fixture
def engine() -> Iterator[Engine]:
    loaded = load(EngineConfig(model="demo-image", folder=BUNDLED["demo-image"]))
    yield loaded
    loaded.close()


def test_the_shipped_model_is_small() -> None:
    assert BUNDLED["demo-image"] == image_model_folder()
    files = [path for path in image_model_folder().rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_the_shipped_model_draws_what_it_is_asked_for(engine: Engine, tmp_path: Path) -> None:
    scenes = dict(enumerate(Random(7).sample(ALL_SCENES, PROMPTS)))
    for number, scene in scenes.items():
        payload = {"prompt": scene.prompt, "seed": number}
        engine.add(EngineRequest(str(number), payload, spool=str(tmp_path / str(number))))

    drawn = {}
    while engine.busy:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                file = tmp_path / event.request_id / event.result["images"][0]["file"]
                drawn[int(event.request_id)] = np.asarray(Image.open(file).convert("RGB"))

    assert {picture.shape for picture in drawn.values()} == {(SIZE, SIZE, 3)}
    verdicts = {number: judge(picture) for number, picture in drawn.items()}
    assert sum(verdicts[number].has_colours_of(scene) for number, scene in scenes.items()) >= 0.9 * PROMPTS
    assert sum(verdicts[number].shape == scene.shape for number, scene in scenes.items()) >= 0.8 * PROMPTS
