"""What several tasks of one worker have of one model, in this process."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import DownloadStoppedError, InvalidModelError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.hub.client import Hub
from bitinglip.settings import ModelSettings
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry
from bitinglip.worker.shelf import ModelShelf
from tests.conftest import eventually
from tests.hub import Fault, LocalHub
from tests.worker.nodes import MODEL, list_copies, make_sized, read_entry, register

WEIGHTS = "*.safetensors"

Use = Callable[[], AbstractContextManager[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with one model."""
    with LocalHub() as opened:
        opened.add_repo(MODEL, make_sized(tmp_path / "served", 300_000))
        yield opened


@pytest.fixture
def shelf(database: Database, hub: LocalHub, tmp_path: Path) -> ModelShelf:
    """Of a node without the model, which is registered."""
    register(database)
    cache = ModelCache(tmp_path / "b")
    downloader = ModelDownloader(database, node="b", cache=cache, hub=Hub(endpoint=hub.url), settings=ModelSettings())
    return ModelShelf(database, node="b", cache=cache, make_downloader=lambda: downloader)


@pytest.fixture
def use(shelf: ModelShelf) -> Use:
    """Use the model as a task does that nobody stops."""
    return partial(shelf.use, MODEL, stop=threading.Event(), on_progress=lambda _: None)


def is_free(tmp_path: Path) -> bool:
    with ModelCache(tmp_path / "b").lock_to_delete(MODEL) as free:
        return free


def test_what_one_task_doubts_is_proven_again_for_the_next_while_others_go_on(
    shelf: ModelShelf, use: Use, database: Database
) -> None:
    with use() as folder:
        weights = (Path(folder) / "model.safetensors").resolve()
        good = weights.read_bytes()
        weights.write_bytes(b"\xff" * 64 + good[64:])

        assert shelf.doubt(MODEL)

        assert list_copies(database)["b"] == "damaged"
        with use() as again:
            assert again == folder
            assert weights.read_bytes() == good
        assert list_copies(database)["b"] == "available"


def test_a_model_is_let_go_when_the_last_of_all_who_use_it_lets_go(shelf: ModelShelf, use: Use, tmp_path: Path) -> None:
    with use():
        with use():
            shelf.note_holding([MODEL])
        shelf.note_holding([])
        assert not is_free(tmp_path)
        shelf.note_holding([MODEL])
    assert not is_free(tmp_path)
    shelf.note_holding([MODEL, "another"])
    assert not is_free(tmp_path)
    shelf.note_holding(["another"])
    assert is_free(tmp_path)


def test_a_model_that_cannot_be_had_is_not_kept_from_being_deleted(
    shelf: ModelShelf, use: Use, hub: LocalHub, tmp_path: Path
) -> None:
    hub.commit(MODEL, make_sized(tmp_path / "custom", 1_000))
    (tmp_path / "custom" / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Model"}}')
    hub.commit(MODEL, tmp_path / "custom")

    with pytest.raises(InvalidModelError, match="auto_map"), use():
        pytest.fail("it was used")

    eventually(lambda: is_free(tmp_path))


class Reluctant(ModelDownloader):
    """Takes its time to stop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.let_go = threading.Event()

    def bring(self, *arguments: Any, **options: Any) -> ModelEntry:
        try:
            return super().bring(*arguments, **options)
        except DownloadStoppedError:
            self.let_go.wait(10)
            raise


def test_one_that_comes_while_the_last_one_leaves_gets_the_model_all_the_same(
    database: Database, hub: LocalHub, tmp_path: Path
) -> None:
    register(database)
    cache = ModelCache(tmp_path / "b")
    downloader = Reluctant(database, node="b", cache=cache, hub=Hub(endpoint=hub.url), settings=ModelSettings())
    shelf = ModelShelf(database, node="b", cache=cache, make_downloader=lambda: downloader)
    hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=100_000))
    stop = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        leaver = threads.submit(read_config, shelf, stop)
        eventually(lambda: hub.requests.sent_bytes("cdn"))
        stop.set()
        assert isinstance(leaver.exception(), DownloadStoppedError)
        comer = threads.submit(read_config, shelf, threading.Event())
        with pytest.raises(TimeoutError):
            comer.result(0.3)

        downloader.let_go.set()

        assert "architectures" in comer.result(20)


def read_config(shelf: ModelShelf, stop: threading.Event) -> str:
    with shelf.use(MODEL, stop=stop, on_progress=lambda _: None) as folder:
        return (Path(folder) / "config.json").read_text()


def test_files_that_could_be_loaded_since_may_be_doubted_again(shelf: ModelShelf, use: Use, database: Database) -> None:
    with use():
        assert shelf.doubt(MODEL)
    with use():
        assert not shelf.doubt(MODEL)
        shelf.note_holding([MODEL])
        assert shelf.doubt(MODEL)
        assert list_copies(database)["b"] == "damaged"


def test_uses_are_noted_once_a_minute(shelf: ModelShelf, use: Use, database: Database) -> None:
    with use():
        shelf.note_uses()
        first = read_entry(database)
        shelf.note_uses()
        second = read_entry(database)
    assert first is not None
    assert second is not None
    assert first.last_used_at
    assert first.last_used_at == second.last_used_at


def test_a_copy_whose_files_somebody_deleted_is_brought_again(use: Use, hub: LocalHub, tmp_path: Path) -> None:
    with use() as folder:
        pass
    next((tmp_path / "b").rglob("*.safetensors")).unlink()
    hub.requests.clear()

    with use() as again:
        assert again == folder
        assert (Path(again) / "model.safetensors").is_file()
