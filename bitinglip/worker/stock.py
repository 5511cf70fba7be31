"""What a worker's pool wants to have from the start: models registered, pinned, brought and loaded.

All of it happens beside the worker's work, which does not wait for it: a hub that is away must keep no worker from
answering. What fails and may succeed later is tried again.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitinglip.domain.catalogue import get_kind
from bitinglip.domain.models import CopyState, ModelSource
from bitinglip.engine.folder import inspect_folder
from bitinglip.errors import BitingLipError, DownloadStoppedError, ServerUnreachableError
from bitinglip.registry.hashing import make_manifest_of_folder
from bitinglip.registry.locate import BUNDLED, is_hub_model
from bitinglip.registry.needs import describe_model, fill_record
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelRecord, describe_entry, insert_entry, list_entries, set_pinned
from bitinglip.telemetry import get_logger
from bitinglip.worker.pools import Pool
from bitinglip.worker.shelf import ModelShelf

RETRY_SECONDS = 30.0

log = get_logger()


@dataclass
class _Wishes:
    """What is not there yet."""

    bundled: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.bundled or self.pinned or self.loaded)


class ModelStock:
    """Sees to it that a node has what a pool wants.

    Args:
        database: Where models are registered.
        pool: What it wants.
        node: This node's name.
        shelf: Brings models of the hub.
        load: Has the engine load a model: its kind, name and folder.
    """

    def __init__(
        self, database: Database, pool: Pool, *, node: str, shelf: ModelShelf, load: Callable[[str, str, str], None]
    ) -> None:
        self._database = database
        self._pool = pool
        self._node = node
        self._shelf = shelf
        self._load = load
        self._wishes = _Wishes(
            bundled=sorted(BUNDLED),
            pinned=list(pool.pin),
            loaded=[model for model in pool.preload if is_hub_model(model)],
        )
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin, in a thread."""
        threading.Thread(target=self._fulfil, name="model-stock", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing more, and stop what is being brought."""
        self._stop.set()

    def _fulfil(self) -> None:
        while self._wishes:
            self._wishes.bundled = self._try_each(self._wishes.bundled, self._register)
            self._wishes.pinned = self._try_each(self._wishes.pinned, self._pin)
            self._wishes.loaded = self._try_each(self._wishes.loaded, self._bring)
            # Those that came just now.
            self._wishes.pinned = self._try_each(self._wishes.pinned, self._pin)
            if self._stop.wait(RETRY_SECONDS if self._wishes else 0):
                return

    def _try_each(self, models: Sequence[str], action: Callable[[str], bool]) -> list[str]:
        """Do it for each; returns those for which it is to be tried again."""
        return [model for model in models if not self._try(model, action)]

    def _try(self, model: str, action: Callable[[str], bool]) -> bool:
        try:
            return self._stop.is_set() or action(model)
        except DownloadStoppedError:
            return True
        except BitingLipError as exc:
            again = exc.retryable or isinstance(exc, ServerUnreachableError)
            log.warning("model_not_stocked", model=model, reason=str(exc), again=again)
            return not again
        except Exception:
            log.exception("model_not_stocked", model=model, again=False)
            return True

    def _register(self, model: str) -> bool:
        """Register a model that comes with the package, anew if it has changed, and this node's copy."""
        path = BUNDLED[model]
        needs = describe_model(path)
        if needs.type not in self._pool.kinds:
            return True
        manifest = make_manifest_of_folder(path)
        copy = ModelCopy(model, self._node, CopyState.AVAILABLE, str(path), manifest.commit, manifest.total_bytes)
        with self._database.transaction() as connection:
            known = {(c.node, c.commit) for entry in list_entries(connection, [model]) for c in entry.copies}
        if (copy.node, copy.commit) in known:
            return True
        record = fill_record(ModelRecord(model, ModelSource.BUNDLED, manifest=manifest), needs)
        with self._database.transaction() as connection:
            if not insert_entry(connection, record):
                describe_entry(connection, record)
            note_copy(connection, copy)
        return True

    def _pin(self, model: str) -> bool:
        """Pin a model; one that is not registered yet, once it is."""
        with self._database.transaction() as connection:
            return set_pinned(connection, model, pinned=True)

    def _bring(self, model: str) -> bool:
        folder = self._shelf.keep(model, stop=self._stop)
        self._load(find_kind(self._pool, folder), model, folder)
        return True


def find_kind(pool: Pool, folder: str) -> str:
    """The kind of task that a model is loaded for before anyone asks: what it is for, or else what the pool does.

    Raises:
        InvalidModelError: If the folder cannot be used.
    """
    type_ = inspect_folder(Path(folder)).type
    if type_ in pool.kinds:
        return type_
    return next((kind for kind in pool.kinds if get_kind(kind).needs_model), pool.kinds[0])
