"""Tiny pipelines, made and loaded once; an engine of its own for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_driver import ImageDriver
from tiny_pipelines import FAMILIES

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.image.loading import load_pipeline
from bitinglip.engine.image.pipeline import ImagePipeline

# diffusers makes arrays of tensors in ways that numpy is to give up.
OLD_ARRAYS = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

Load = Callable[[str], ImagePipeline]
Drive = Callable[..., ImageDriver]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(OLD_ARRAYS)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's pipeline; nobody changes it."""
    root = tmp_path_factory.mktemp("pipelines")

    def find(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            FAMILIES[family](folder)
        return folder

    return find


@pytest.fixture(scope="session")
def loaded(saved: Callable[[str], Path]) -> Load:
    """A family's pipeline, loaded; engines share its weights and nothing else."""
    known: dict[str, ImagePipeline] = {}

    def load(family: str) -> ImagePipeline:
        if family not in known:
            known[family] = load_pipeline(EngineConfig(model=family, folder=saved(family)))
        return known[family]

    return load


@pytest.fixture
def drive(loaded: Load, tmp_path: Path) -> Iterator[Drive]:
    """Make an engine over a tiny pipeline; what it draws ends with the test."""
    made: list[ImageDriver] = []

    def make(family: str = "stable_diffusion", **options: Any) -> ImageDriver:
        made.append(ImageDriver(loaded(family), tmp_path / f"spool{len(made)}", **options))
        return made[-1]

    yield make
    for driver in made:
        driver.stop()
