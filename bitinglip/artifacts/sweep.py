"""Delete what nothing names, and say which records name what is not there.

A file that an attempt made is somebody's while its attempt is the task's last one and the task has not ended, or once
the task's record names it. Files are listed before records are asked: a file that is listed and then named is seen as
named. One that somebody brought is kept for some days, and while a task that has not ended takes it.

Any number may sweep at once. One that ends half way has deleted only what is nobody's.

A task that ended long ago was looked at after its end: its folder is not listed again, or a bucket with a million
pictures would be asked a million questions at each sweep. Weakness: what sweeps that did not take place have left there
stays until the task's record is gone.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bitinglip.artifacts.folder import strip_draft
from bitinglip.artifacts.store import ArtifactStore, StoredFile
from bitinglip.domain.artifacts import UPLOADS, find_maker
from bitinglip.domain.catalogue import find_kinds
from bitinglip.store import artifacts
from bitinglip.store.artifacts import Claim
from bitinglip.store.copies import find_key
from bitinglip.store.database import Database

BATCH = 500
"""Tasks that PostgreSQL is asked about at once."""

OLD_AFTER = timedelta(days=1)
"""Since its end, a task has been looked at by then."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        kept: Files that were looked at and are somebody's.
        deleted: Files that were nobody's.
        missing: Artifacts that records name and that are not there.
    """

    kept: int
    deleted: int
    missing: list[str]


def sweep(store: ArtifactStore, database: Database, *, upload_days: int, old_after: timedelta = OLD_AFTER) -> Swept:
    """Delete every file that is nobody's, and find every record that has lost one.

    Args:
        store: Of the system.
        database: Of the system.
        upload_days: Days that a file which somebody brought is kept.
        old_after: The files of tasks that ended so long ago are not looked at.

    Raises:
        ArtifactStoreTakenError: If it is another system's. Nothing is deleted.
        ArtifactStoreError: If the store cannot be used.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    store.check_owner(find_owner(database))
    old_seconds = old_after.total_seconds()
    folders = store.list_folders()
    kept = deleted = 0
    for batch in _batch([found for found in map(_parse_id, folders) if found is not None]):
        with database.statement() as connection:
            claims = artifacts.find_claims(connection, batch, old_seconds=old_seconds)
        young = [task_id for task_id in batch if task_id not in claims or not claims[task_id].is_old]
        listed = {task_id: store.list_files(str(task_id)) for task_id in young}
        orphans = _find_orphans(database, listed, old_seconds)
        store.delete(file.name for file in orphans)
        deleted += len(orphans)
        kept += sum(map(len, listed.values())) - len(orphans)
    if UPLOADS in folders:
        uploads = store.list_files(UPLOADS)
        stale = _find_stale(store, database, uploads, timedelta(days=upload_days))
        store.delete(file.name for file in stale)
        deleted += len(stale)
        kept += len(uploads) - len(stale)
    return Swept(kept, deleted, [*_list_missing(store, database, old_seconds)])


def find_owner(database: Database) -> str:
    """What a system is known by where it keeps artifacts.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.statement() as connection:
        return find_key(connection, "artifacts")


def _find_orphans(
    database: Database, listed: dict[uuid.UUID, list[StoredFile]], old_seconds: float
) -> list[StoredFile]:
    with database.statement() as connection:
        claims = artifacts.find_claims(connection, [*listed], old_seconds=old_seconds)
    orphans = [
        file for task_id, files in listed.items() for file in files if not _is_claimed(file, claims.get(task_id))
    ]
    # After the claims: a task that takes one of these was submitted while its maker was there.
    taken = _list_inputs(database) if orphans else set()
    return [file for file in orphans if file.name not in taken]


def _is_claimed(file: StoredFile, claim: Claim | None) -> bool:
    maker = find_maker(strip_draft(file.name))
    if claim is None or maker is None:
        return False
    return maker.attempt == claim.open_attempt or file.name in claim.names


def _find_stale(
    store: ArtifactStore, database: Database, uploads: Sequence[StoredFile], kept_for: timedelta
) -> list[StoredFile]:
    oldest = datetime.now(UTC) - kept_for
    old = [file for file in uploads if file.modified_at < oldest]
    taken = _list_inputs(database) if old else set()
    # Again, at the last moment: one that was brought anew is somebody's.
    now = {file.name: file for file in store.list_files(UPLOADS)} if old else {}
    return [file for file in old if file.name not in taken and now.get(file.name) == file]


def _list_inputs(database: Database) -> set[str]:
    """The artifacts that tasks take which have not ended."""
    found = set()
    for kind in find_kinds().values():
        for name in kind.inputs:
            with database.statement() as connection:
                found |= artifacts.list_inputs(connection, kind.name, name)
    return found


def _list_missing(store: ArtifactStore, database: Database, old_seconds: float) -> Iterator[str]:
    types = [kind.name for kind in find_kinds().values() if kind.files is not None]
    after_seq = -1
    while True:
        with database.statement() as connection:
            page = artifacts.list_recorded(connection, types, old_seconds=old_seconds, after_seq=after_seq, limit=BATCH)
        if not page:
            return
        for _, task_id, names in page:
            there = {file.name for file in store.list_files(str(task_id))}
            yield from (name for name in names if name not in there)
        after_seq = page[-1][0]


def _batch(task_ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    for start in range(0, len(task_ids), BATCH):
        yield task_ids[start : start + BATCH]


def _parse_id(folder: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(folder)
    except ValueError:
        return None
