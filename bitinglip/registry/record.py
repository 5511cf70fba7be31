"""What a download writes into the registry: the model, this node's copy, and why it failed."""

from typing import Any

from sqlalchemy.exc import IntegrityError

from bitinglip.domain.models import CopyState, Manifest, ModelName, ModelSource, ModelStatus
from bitinglip.errors import BitingLipError, DatabaseUnreachableError, ModelInUseError, ModelNotFoundError
from bitinglip.registry.cache import ModelCache
from bitinglip.store.copies import delete_copy, note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import (
    ModelCopy,
    ModelEntry,
    ModelRecord,
    delete_entry,
    describe_entry,
    insert_entry,
    list_entries,
    lock_entry,
    note_error,
)
from bitinglip.telemetry import get_logger

log = get_logger()


class DownloadRecord:
    """One model and this node's copy of it, as they are registered.

    Args:
        database: Where.
        node: This node's name.
        cache: Where its files are.
        name: The model's.

    Attributes:
        is_new: Whether this download registered the model.
    """

    def __init__(self, database: Database, *, node: str, cache: ModelCache, name: ModelName) -> None:
        self._database = database
        self._node = node
        self._cache = cache
        self._model = name
        self.name = str(name)
        self.is_new = False

    def register(self) -> ModelEntry:
        """The registered model; it is registered if it was not.

        Raises:
            ModelInUseError: If it is being removed.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        record = ModelRecord(self.name, ModelSource.HUB, repo=self._model.repo, revision=self._model.revision)
        with self._database.transaction() as connection:
            self.is_new = insert_entry(connection, record)
        entry = self.read()
        if entry is None or entry.status is ModelStatus.REMOVING:
            raise ModelInUseError(self.name, "is being removed; fetch it again when it is gone")
        return entry

    def read(self) -> ModelEntry | None:
        """The registered model; None if it is not registered.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._database.statement() as connection:
            entries = list_entries(connection, [self.name])
        return entries[0] if entries else None

    def has_copy(self, entry: ModelEntry) -> bool:
        """Whether this node has a proven copy, and its files are there."""
        manifest, copy = entry.record.manifest, entry.find_copy(self._node)
        return (
            manifest is not None
            and copy is not None
            and copy.state is CopyState.AVAILABLE
            and copy.folder == self.find_folder(manifest)
            and self._cache.is_linked(self._model.repo, manifest)
        )

    def find_folder(self, manifest: Manifest) -> str:
        """Where this node's copy is, or would be."""
        return str(self._cache.find_snapshot(self._model.repo, manifest.commit))

    def pin(self, record: ModelRecord) -> None:
        """Add what the hub says of the model, unless another node has done so before: the first one's word counts.

        Raises:
            ModelNotFoundError: If the model was removed meanwhile.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._database.transaction() as connection:
            if not lock_entry(connection, self.name):
                raise ModelNotFoundError(self.name, [])
            (entry,) = list_entries(connection, [self.name])
            if entry.record.manifest is None:
                describe_entry(connection, record)

    def describe(self, record: ModelRecord) -> None:
        """Add what has become known of the model.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._database.transaction() as connection:
            describe_entry(connection, record)

    def note(self, state: CopyState, manifest: Manifest, done_bytes: int) -> None:
        """Say where this node's copy stands.

        Raises:
            ModelNotFoundError: If the model was removed meanwhile.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        folder = self.find_folder(manifest)
        copy = ModelCopy(self.name, self._node, state, folder, manifest.commit, done_bytes)
        try:
            with self._database.transaction() as connection:
                note_copy(connection, copy)
        except IntegrityError as exc:
            raise ModelNotFoundError(self.name, []) from exc

    def forgive(self) -> None:
        """Forget why it could not be fetched last time.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._database.transaction() as connection:
            note_error(connection, self.name, None)

    def fail(self, error: BitingLipError, *, keeps_copy: bool) -> None:
        """Say why it could not be fetched. A model that this download registered, and got nothing of, is forgotten.

        Args:
            error: Why.
            keeps_copy: Whether something of it stays on this node.
        """
        described: dict[str, Any] = {"code": error.code, "message": str(error), "retryable": error.retryable}
        try:
            with self._database.transaction() as connection:
                note_error(connection, self.name, described)
                if not keeps_copy:
                    delete_copy(connection, self.name, self._node)
                if not keeps_copy and self.is_new and not error.retryable:
                    delete_entry(connection, self.name)
        except DatabaseUnreachableError:
            log.warning("download_error_not_recorded", model=self.name, reason=str(error))
