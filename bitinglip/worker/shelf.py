"""This node's models of the hub, as one worker uses them: found, brought if need be, kept from being deleted.

    use ─► use lock ─► a proven copy here? ─► inspected ─► its folder
                          └─ no ─► brought, once for all who wait for it

A registered model is brought from another node, or from the hub; a model that is not registered is nobody's decision
here, and refused. Whoever waits is told how far it is, and may leave: when nobody waits any more, it is stopped. What
has come of it stays for the next one, as it was a task that was cancelled and not the model.

Invariant: from the moment that a task has a model's folder until neither it nor the engine uses the model, this process
has a share of the model's use lock, and nobody deletes it.

Weakness: an attempt that waits for its model holds one of the worker's slots.
"""

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bitinglip.domain.models import CopyState, ModelName, ModelStatus
from bitinglip.engine.folder import inspect_folder
from bitinglip.errors import DatabaseUnreachableError, DownloadStoppedError, ModelNotFoundError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.locate import BUNDLED
from bitinglip.registry.record import DownloadRecord
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.store.copies import note_copy, use_copies
from bitinglip.store.database import Database
from bitinglip.store.entries import list_entries, lock_entry
from bitinglip.telemetry import get_logger

if TYPE_CHECKING:
    from bitinglip.registry.downloader import ModelDownloader

POLL_SECONDS = 0.1
"""From a task's being told to stop to its leaving."""

RETRY_SECONDS = 0.5
"""Before PostgreSQL is asked again, where it is away."""

USED_SECONDS = 60.0
"""From one note that a model is used to the next."""

log = get_logger()

ProgressListener = Callable[[DownloadProgress], None]


@dataclass
class _Search:
    """Finding one model, for all who wait for it."""

    found: "Future[str]" = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)
    listeners: list[ProgressListener] = field(default_factory=list)

    def tell(self, progress: DownloadProgress) -> None:
        for listener in list(self.listeners):
            listener(progress)


@dataclass
class _Place:
    """One model that somebody uses.

    Attributes:
        users: Tasks that have its folder, or wait for it; and one more if it is kept for good.
        is_held: By the engine.
        lock: Keeps its files; None: not taken yet.
        folder: Once it is found.
        noted_at: When its use was noted last, on the monotonic clock.
    """

    users: int = 0
    is_held: bool = False
    lock: int | None = None
    folder: str | None = None
    search: _Search | None = None
    noted_at: float = -math.inf


class ModelShelf:
    """The models of the hub that one worker uses. Methods may be called from any thread.

    Args:
        database: Where models are registered.
        node: This node's name.
        cache: Its folder.
        make_downloader: Makes what brings models to that node.
    """

    def __init__(
        self, database: Database, *, node: str, cache: ModelCache, make_downloader: "Callable[[], ModelDownloader]"
    ) -> None:
        self._database = database
        self._node = node
        self._cache = cache
        self._make_downloader = make_downloader
        self._mutex = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._proven_again: set[str] = set()
        self._doubted: set[str] = set()

    @contextlib.contextmanager
    def use(self, model: str, *, stop: threading.Event, on_progress: ProgressListener) -> Iterator[str]:
        """The folder of a registered model, in which nothing is deleted within the block.

        Args:
            model: As tasks name it.
            stop: Ends the wait for it, within `POLL_SECONDS`.
            on_progress: Told how far it is while it is brought, from another thread.

        Raises:
            ModelNotFoundError: If it is not registered, or is being removed.
            DownloadStoppedError: If told to stop.
            BitingLipError: Why it cannot be had; `retryable` says whether trying again may help.
        """
        place = self._enter(model)
        try:
            yield self._find(model, place, stop, on_progress, may_register=False)
        finally:
            self._leave(model, place)

    def keep(self, model: str, *, stop: threading.Event) -> str:
        """The folder of a model that is in use for as long as this process lives; one that is new is registered.

        Raises:
            BitingLipError: As from `use`.
        """
        place = self._enter(model)
        try:
            return self._find(model, place, stop, lambda _: None, may_register=True)
        except BaseException:
            self._leave(model, place)
            raise

    def note_holding(self, models: Collection[str]) -> None:
        """Take down which models the engine holds; the others need not be kept for it."""
        with self._mutex:
            for model in models:
                if model in self._places:
                    self._places[model].is_held = True
            # What could be loaded is not in doubt.
            self._proven_again.difference_update(models)
            left = {model: place for model, place in self._places.items() if place.is_held and model not in models}
            for place in left.values():
                place.is_held = False
        for model, place in left.items():
            self._let_go(model, place)

    def note_uses(self) -> None:
        """Record which models are used, of each once a minute: who was not used for longest leaves first.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away. It is noted the next time.
        """
        now = time.monotonic()
        with self._mutex:
            # Before it is found, this node may have no copy on which to note it.
            found = [(model, place) for model, place in self._places.items() if place.folder is not None]
        due = [(model, place) for model, place in found if now - place.noted_at >= USED_SECONDS]
        for model, place in due:
            # One at a time: several workers that note several models in one transaction could wait for each other.
            with self._database.transaction(durable=False) as connection:
                use_copies(connection, self._node, [_register_name(model)])
            place.noted_at = now

    def doubt(self, model: str) -> bool:
        """Have a model proven again that could not be used; False if it was, and it is not the files.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._mutex:
            if model in self._proven_again:
                return False
            self._doubted.add(model)
            if model in self._places:
                self._places[model].folder = None
        with self._database.transaction() as connection:
            # Nobody removes it meanwhile.
            if not lock_entry(connection, _register_name(model)):
                return True
            for copy in (c for entry in list_entries(connection, [_register_name(model)]) for c in entry.copies):
                if copy.node == self._node and copy.state is CopyState.AVAILABLE:
                    log.warning("copy_doubted", model=model, node=self._node)
                    note_copy(connection, replace(copy, state=CopyState.DAMAGED))
        return True

    def _enter(self, model: str) -> _Place:
        with self._mutex:
            place = self._places.setdefault(model, _Place())
            place.users += 1
            return place

    def _leave(self, model: str, place: _Place) -> None:
        with self._mutex:
            place.users -= 1
        self._let_go(model, place)

    def _let_go(self, model: str, place: _Place) -> None:
        """Give the lock back if nobody needs it any more."""
        with self._mutex:
            if place.users or place.is_held or place.search is not None or self._places.get(model) is not place:
                return
            del self._places[model]
            if place.lock is not None:
                os.close(place.lock)

    def _find(
        self, model: str, place: _Place, stop: threading.Event, on_progress: ProgressListener, *, may_register: bool
    ) -> str:
        while True:
            with self._mutex:
                if place.folder is not None:
                    return place.folder
                search = place.search or self._begin_search(model, place, may_register=may_register)
                search.listeners.append(on_progress)
            try:
                return _await(search.found, stop, model)
            except DownloadStoppedError:
                # Of those who waited before the last one left, and this one came.
                if stop.is_set():
                    raise
            except DatabaseUnreachableError as exc:
                log.warning("model_search_delayed", model=model, reason=str(exc))
                if stop.wait(RETRY_SECONDS):
                    raise DownloadStoppedError(model) from exc
            finally:
                with self._mutex:
                    search.listeners.remove(on_progress)
                    if not search.listeners:
                        search.stop.set()

    def _begin_search(self, model: str, place: _Place, *, may_register: bool) -> _Search:
        search = place.search = _Search()
        run = functools.partial(self._search, model, place, search, may_register=may_register)
        threading.Thread(target=run, name=f"find {model}", daemon=True).start()
        return search

    def _search(self, model: str, place: _Place, search: _Search, *, may_register: bool) -> None:
        folder, error = None, None
        try:
            folder = self._locate(model, place, search, may_register=may_register)
        except BaseException as exc:
            error = exc
        with self._mutex:
            place.search = None
            place.folder = folder
        if error is None and folder is not None:
            search.found.set_result(folder)
        else:
            search.found.set_exception(error)
        self._let_go(model, place)

    def _locate(self, model: str, place: _Place, search: _Search, *, may_register: bool) -> str:
        name = ModelName.parse(model)
        if place.lock is None:
            # Before the copy is looked for: what is found must not go.
            place.lock = self._cache.lock_to_use(name.repo)
        record = DownloadRecord(self._database, node=self._node, cache=self._cache, name=name)
        entry = record.read()
        if not may_register and (entry is None or entry.status is ModelStatus.REMOVING):
            raise ModelNotFoundError(model, sorted(BUNDLED))
        if entry is None or not record.has_copy(entry):
            entry = self._make_downloader().bring(
                model, stop=search.stop, on_progress=search.tell, keep_parts=lambda: True
            )
            self._note_proven(model)
        manifest = entry.record.manifest
        assert manifest is not None  # noqa: S101 - of a model that is here
        folder = self._cache.find_snapshot(name.repo, manifest.commit)
        inspect_folder(folder)
        return str(folder)

    def _note_proven(self, model: str) -> None:
        with self._mutex:
            if model in self._doubted:
                self._doubted.discard(model)
                self._proven_again.add(model)


def _register_name(model: str) -> str:
    """What a model is registered as that a task may have named otherwise: the main branch goes without saying."""
    return str(ModelName.parse(model))


def _await(found: "Future[str]", stop: threading.Event, model: str) -> str:
    while True:
        try:
            return found.result(timeout=POLL_SECONDS)
        except FutureTimeoutError:
            if stop.is_set() and not found.done():
                raise DownloadStoppedError(model) from None
