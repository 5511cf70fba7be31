"""The invariants of files: every record's files are there, as the record says, and after a sweep there are no others.

file_missing   a record names it and it is not there
file_damaged   it has other bytes than its record says
file_unnamed   the sweep left it and no record names it
"""

import hashlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, text

from bitinglip.artifacts.store import CHUNK_BYTES, ArtifactStore
from bitinglip.artifacts.sweep import sweep
from bitinglip.chaos.checks import Verdict, Violation
from bitinglip.errors import ArtifactNotFoundError
from bitinglip.store.database import Database

KEPT_UPLOAD_DAYS = 3_650
"""Nobody's uploads are chaos' business."""


_NAMED = text("""
SELECT t.id, image ->> 'artifact' AS name, image ->> 'sha256' AS sha256
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id, jsonb_array_elements(d.result -> 'images') AS image
WHERE t.id = ANY(CAST(:ids AS uuid[])) AND t.status = 'completed' AND t.type = 'image'
""")


def add_files(verdict: Verdict, store: ArtifactStore, database: Database, task_ids: Collection[uuid.UUID]) -> Verdict:
    """What became of tasks that have ended, and of every file of theirs, before and after a sweep.

    Raises:
        ArtifactStoreError: If the store cannot be used.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.statement() as connection:
        named = _list_named(connection, task_ids)
    before = _list_files(store, task_ids)
    violations = [*_check_named(store, named)]
    sweep(store, database, upload_days=KEPT_UPLOAD_DAYS)
    after = _list_files(store, task_ids)
    names = {name for _, name, _ in named}
    violations += [
        Violation(uuid.UUID(name.partition("/")[0]), "file_unnamed", f"{name} is there and no record names it")
        for name in sorted(after - names)
    ]
    return replace(
        verdict,
        violations=[*verdict.violations, *violations],
        files=len(names),
        files_swept=len(before - after),
    )


def _check_named(store: ArtifactStore, named: Sequence[tuple[uuid.UUID, str, str]]) -> Iterator[Violation]:
    for task_id, name, sha256 in named:
        try:
            found = _hash(store, name)
        except ArtifactNotFoundError:
            yield Violation(task_id, "file_missing", f"{name} is not there")
            continue
        if found != sha256:
            yield Violation(task_id, "file_damaged", f"{name} has sha256 {found} in place of {sha256}")


def _hash(store: ArtifactStore, name: str) -> str:
    digest = hashlib.sha256()
    with store.open(name) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _list_named(connection: Connection, task_ids: Collection[uuid.UUID]) -> list[tuple[uuid.UUID, str, str]]:
    rows: Any = connection.execute(_NAMED, {"ids": [str(task_id) for task_id in task_ids]})
    return [(row.id, row.name, row.sha256) for row in rows]


def _list_files(store: ArtifactStore, task_ids: Collection[uuid.UUID]) -> set[str]:
    folders = {str(task_id) for task_id in task_ids}.intersection(store.list_folders())
    return {file.name for folder in folders for file in store.list_files(folder)}
