"""In half precision some pipelines put the VAE that batches share into float32 to decode."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from image_driver import Clock, ImageDriver

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.image import decoding
from bitinglip.engine.image.capacity import Capacity
from bitinglip.engine.image.loading import load_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:`upcast_vae`:FutureWarning")


@pytest.fixture
def driver(saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageDriver]:
    """A tiny SDXL in float16 that decodes one row at a time."""
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 1)
    config = EngineConfig(model="tiny", folder=saved("stable_diffusion_xl"), dtype="float16")
    made = ImageDriver(load_pipeline(config), tmp_path / "spool")
    assert made.pipeline.vae.dtype is torch.float16
    yield made
    made.stop()


def test_a_batch_that_decodes_is_not_interrupted_by_another(
    driver: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch).step_seconds = 1.0
    driver.add("a", count=3, seed=1, preview_steps=2)
    driver.add("b", count=3, seed=11, steps=5)
    driver.run()
    for name in ("a", "b"):
        assert len(driver.result(name)["images"]) == 3
    assert driver.pipeline.vae.dtype is torch.float16
    assert any("preview" in event.detail for event in driver.progress("a"))


def test_a_batch_that_ends_while_it_decodes_leaves_the_vae_as_it_was(driver: ImageDriver) -> None:
    driver.add("a", count=3, seed=1)
    while not any(drawing.is_decoding for drawing in driver.engine._drawings.values()):
        driver.step()
    driver.engine.cancel("a")
    driver.add("b", seed=2)
    driver.run()
    assert driver.failure("a").code == "cancelled"
    assert driver.result("b")["images"]
    assert driver.pipeline.vae.dtype is torch.float16


def test_before_anything_is_known_large_pictures_are_few_at_once() -> None:
    capacity = Capacity(16, None)
    assert [capacity.count_rows(side * side) for side in (512, 1_024, 4_096)] == [16, 4, 1]
    capacity.note_peak(1_024 * 1_024, 1_000_000)
    assert capacity.count_rows(1_024 * 1_024) == 16
