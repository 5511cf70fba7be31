"""One node's folder of models, what is registered from there, and a hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.registry import ModelRegistry
from bitinglip.settings import ModelSettings
from bitinglip.store.database import Database
from tests.hub import LocalHub
from tests.registry.kept import NODE
from tests.registry.nodes import NAME, FetchingNode, MakeNode, make_model


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """The node's folder, empty."""
    return ModelCache(tmp_path / "hub")


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub without models."""
    with LocalHub() as served:
        yield served


@pytest.fixture
def registry(database: Database, cache: ModelCache) -> ModelRegistry:
    """The registry as the node sees it, with a hub that does not answer."""
    return ModelRegistry(database, node=NODE, cache=cache, hub=Hub(endpoint="http://127.0.0.1:9"))


@pytest.fixture
def served(hub: LocalHub, tmp_path: Path) -> Path:
    """A model's folder, which the hub serves."""
    folder = make_model(tmp_path / "served")
    hub.add_repo(NAME, folder, licence="mit", tags=["small"])
    return folder


@pytest.fixture
def make_node(database: Database, hub: LocalHub, served: Path, tmp_path: Path) -> MakeNode:
    """Nodes that fetch what the hub serves."""

    def make(name: str = "a", *, folder: Path | None = None, **settings: float) -> FetchingNode:
        chosen = ModelSettings.model_validate({"model_spare_bytes": 0, "download_stall_seconds": 0.6, **settings})
        cache = ModelCache(folder or tmp_path / f"cache-{name}")
        asked = Hub(endpoint=hub.url, stall_seconds=chosen.download_stall_seconds)
        downloader = ModelDownloader(database, node=name, cache=cache, hub=asked, settings=chosen)
        return FetchingNode(name, cache, database, downloader)

    return make


@pytest.fixture
def node(make_node: MakeNode) -> FetchingNode:
    """One node that fetches what the hub serves."""
    return make_node()
