"""The artifacts as a worker sees them: its spool, and whether other nodes see the same store."""

import uuid

from bitinglip.artifacts.spool import Spool
from bitinglip.artifacts.store import open_artifacts
from bitinglip.artifacts.sweep import find_owner
from bitinglip.domain.catalogue import get_kind
from bitinglip.errors import ArtifactStoreError
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.store.workers import list_nodes_elsewhere
from bitinglip.telemetry import get_logger
from bitinglip.worker.pools import WorkerSpec

log = get_logger()


class WorkerArtifacts:
    """What a worker's tasks take and make.

    Args:
        name: Of the worker; its spool is its own.
        spec: Its pool.
        database: Where other workers say which store they see.

    Attributes:
        spool: Where attempts find and leave files.
    """

    def __init__(self, name: str, spec: WorkerSpec, database: Database) -> None:
        self._store = open_artifacts()
        self._database = database
        self._makes_files = any(get_kind(kind).files is not None for kind in spec.pool.kinds)
        folder = load_settings(ServerSettings).data_dir.expanduser() / "spool" / name.replace("/", "_")
        self.spool = Spool(folder, self._store)

    def prepare(self) -> uuid.UUID | None:
        """Return the id of the store; None if no task makes files, or the store is away.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        self.spool.owner = find_owner(self._database)
        if not self._makes_files:
            return None
        try:
            store_id = self._store.find_id()
        except ArtifactStoreError as exc:
            # Tasks that make files fail, and say why; the others go on.
            log.error("artifacts_unreachable", reason=str(exc))
            return None
        with self._database.statement() as connection:
            elsewhere = list_nodes_elsewhere(connection, store_id)
        if elsewhere:
            remedy = "let BITINGLIP_ARTIFACT_URL name one folder or bucket that every node sees"
            log.error("artifacts_not_shared", place=self._store.place, nodes=elsewhere, remedy=remedy)
        return store_id
