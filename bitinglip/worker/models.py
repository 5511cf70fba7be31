"""What one worker learns of models: where they are, what they take, which could not be loaded.

It is written with a heartbeat, and only when it is new.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from bitinglip.engine import wire
from bitinglip.errors import DatabaseUnreachableError
from bitinglip.lifecycle.loads import note_models, report_load_failure
from bitinglip.registry.locate import is_hub_model, locate_model
from bitinglip.store.database import Database
from bitinglip.store.models import ModelSize
from bitinglip.store.tasks import Change
from bitinglip.telemetry import get_logger
from bitinglip.worker.shelf import ModelShelf, ProgressListener

log = get_logger()


class ModelNotes:
    """Notes of one worker. Methods may be called from any thread.

    Args:
        database: Where they are written.
        worker_name: The worker's.
        shelf: Has the models of the hub.
        announce: Told which tasks were failed because their model is given up.
    """

    def __init__(
        self, database: Database, worker_name: str, shelf: ModelShelf, announce: Callable[[list[Change]], None]
    ) -> None:
        self._database = database
        self._worker_name = worker_name
        self._shelf = shelf
        self._announce = announce
        self._mutex = threading.Lock()
        self._folders: dict[str, str] = {}
        self._held: frozenset[str] = frozenset()
        self._weights: dict[str, int] = {}
        self._loaded: dict[str, int] = {}

    @contextlib.contextmanager
    def use(self, model: str, stop: threading.Event, on_progress: ProgressListener) -> Iterator[str]:
        """The model's folder; one of the hub is brought if it is not here, and is not deleted within the block.

        Args:
            model: As tasks name it.
            stop: Ends the wait for it.
            on_progress: Told how far it is while it is brought.

        Raises:
            ModelNotFoundError: If it is not registered, and no folder of this machine.
            InvalidModelError: If it cannot be used.
            DownloadStoppedError: If told to stop.
            BitingLipError: Why it cannot be had.
        """
        if is_hub_model(model):
            with self._shelf.use(model, stop=stop, on_progress=on_progress) as folder:
                yield folder
        else:
            yield self.find_folder(model)

    def doubt(self, model: str) -> bool:
        """Have a model of the hub proven again that could not be used; False if that would not help."""
        try:
            return is_hub_model(model) and self._shelf.doubt(model)
        except DatabaseUnreachableError as exc:
            log.warning("doubt_not_recorded", model=model, reason=str(exc))
            return True

    def find_folder(self, model: str) -> str:
        """The folder of a model that is no hub's, inspected the first time this process uses it.

        Raises:
            ModelNotFoundError: If this machine does not have it.
            InvalidModelError: If it cannot be used.
        """
        folder = self._folders.get(model)
        if folder is None:
            found = locate_model(model)
            with self._mutex:
                folder = self._folders[model] = str(found.path)
                self._weights[model] = found.weight_bytes
        return folder

    def note_holding(self, holding: wire.Holding) -> None:
        """Take down what models took right after they were loaded; what they grow to depends on who asks for what."""
        with self._mutex:
            self._loaded |= {m: size for m, size in holding.model_bytes.items() if m not in self._held}
            self._held = frozenset(holding.model_bytes)
        self._shelf.note_holding(holding.model_bytes)

    def note_engine_loss(self) -> None:
        """Nothing is held any more."""
        self.note_holding(wire.Holding())

    def write(self) -> None:
        """Record what is new.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away. It is kept for the next time.
        """
        self._shelf.note_uses()
        with self._mutex:
            weights, loaded = dict(self._weights), dict(self._loaded)
        if not weights and not loaded:
            return
        sizes = [ModelSize(m, weights.get(m), loaded.get(m)) for m in sorted(weights.keys() | loaded.keys())]
        note_models(self._database, sizes, worker_name=self._worker_name, loaded=sorted(loaded))
        with self._mutex:
            self._weights = {m: size for m, size in self._weights.items() if weights.get(m) != size}
            self._loaded = {m: size for m, size in self._loaded.items() if loaded.get(m) != size}

    def report_load_failure(self, type_: str, model: str, message: str) -> str | None:
        """Record that a model could not be loaded here; returns why it is given up, None if it is not."""
        try:
            verdict = report_load_failure(
                self._database, type_=type_, model=model, worker_name=self._worker_name, message=message
            )
        except DatabaseUnreachableError as exc:
            log.warning("load_failure_not_recorded", model=model, reason=str(exc))
            return None
        self._announce(verdict.failed)
        return verdict.given_up
