"""A node's keeper: says that the node is there, serves its models to others, deletes those that are to go.

It lives in the workers that download. Of several on one node one keeps it, whoever got the lock; the kernel gives it to
the next one when that worker ends, however it ends.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from sqlalchemy import Row

from bitinglip.errors import DatabaseUnreachableError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.peers.server import PeerServer
from bitinglip.registry.removal import delete_locked_copy
from bitinglip.settings import ModelSettings
from bitinglip.store.copies import Node, list_least_used, note_node
from bitinglip.store.database import Database
from bitinglip.store.entries import delete_removed
from bitinglip.telemetry import get_logger

KEEP_SECONDS = 5.0

log = get_logger()


class NodeKeeper:
    """Keeps one node from `start` to `stop`, unless another worker does already.

    Args:
        database: Where nodes and copies are registered.
        node: This node's name.
        cache: Its folder.
        settings: Where it serves, and what its models may take.
    """

    def __init__(self, database: Database, *, node: str, cache: ModelCache, settings: ModelSettings) -> None:
        self._database = database
        self._node = node
        self._cache = cache
        self._settings = settings
        self._lock: int | None = None
        self._server: PeerServer | None = None
        self._problems: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_until_stopped, name="node-keeper", daemon=True)

    def start(self) -> None:
        """Begin to keep the node."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more, and let another worker keep the node."""
        self._stop.set()
        self._thread.join(timeout=KEEP_SECONDS)

    def _keep_until_stopped(self) -> None:
        while not self._stop.is_set():
            self._try("node_not_kept", self._keep)
            self._stop.wait(KEEP_SECONDS)
        self._try("node_not_left", self._leave)

    def _keep(self) -> None:
        if not self._is_keeper():
            return
        self._try("models_not_served", self._serve)
        self._note()
        with self._database.statement() as connection:
            leaving = [copy for copy in list_least_used(connection, self._node) if copy.removing]
        for copy in leaving:
            self._try("copy_not_deleted", partial(self._delete, copy))
        # A download that was stopped for it may have been the last that had anything of a model.
        with self._database.statement() as connection:
            delete_removed(connection)

    def _leave(self) -> None:
        try:
            if self._server is not None:
                self._server.close()
                self._server = None
                self._note()
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _is_keeper(self) -> bool:
        """Whether this worker keeps the node; it does from the moment that nobody else does."""
        if self._lock is not None:
            return True
        # By name: several nodes may share the folder.
        path = self._cache.folder / ".locks" / f"node-{quote(self._node, safe='')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def _serve(self) -> None:
        if self._server is not None:
            return
        settings = self._settings
        server = PeerServer(
            self._database, node=self._node, cache=self._cache, host=settings.peer_host, port=settings.peer_port
        )
        server.start()
        self._server = server
        log.info("models_served", node=self._node, url=server.url)

    def _note(self) -> None:
        usage = shutil.disk_usage(self._cache.folder)
        node = Node(
            name=self._node,
            store_id=self._cache.find_store_id(),
            store_folder=str(self._cache.folder),
            peer_url=self._server.url if self._server else None,
            disk_bytes=usage.total,
            free_bytes=usage.free,
            budget_bytes=self._settings.model_disk_bytes,
        )
        with self._database.transaction(durable=False) as connection:
            note_node(connection, node)

    def _delete(self, copy: Row[Any]) -> None:
        """Delete a copy of a model that is to go, unless somebody uses it: then another time."""
        with self._cache.lock_to_delete(copy.repo) as is_free:
            if not is_free:
                return
            freed_bytes = delete_locked_copy(
                self._database,
                node=self._node,
                cache=self._cache,
                model=copy.model,
                repo=copy.repo,
                commit=copy.commit_hash,
            )
        log.info("copy_deleted", model=copy.model, node=self._node, freed_bytes=freed_bytes)

    def _try(self, event: str, action: Callable[[], None]) -> None:
        """Do one thing; what goes wrong again is not logged again."""
        try:
            action()
        except (DatabaseUnreachableError, OSError) as exc:
            if self._problems.get(event) != str(exc):
                log.warning(event, node=self._node, reason=str(exc))
            self._problems[event] = str(exc)
        except Exception:
            # Whatever it was: a node without its keeper would be gone for the others.
            log.exception(event, node=self._node)
        else:
            self._problems.pop(event, None)
