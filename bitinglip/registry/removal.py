"""A model goes: who is in the way, and the files of one node's copy.

Invariant: the record goes before the files, so that nothing is called available while it is being deleted; and files
that another registered model consists of as well (a branch and a tag may name one commit) stay.
"""

from dataclasses import dataclass

from bitinglip.domain.models import ModelSource
from bitinglip.errors import ModelInUseError
from bitinglip.registry.cache import ModelCache
from bitinglip.store.copies import delete_copies, delete_copy, delete_lost_copies, list_owners
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, delete_entry, is_removing, list_entries, list_users, set_removing


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a model that was removed.

    Attributes:
        freed_bytes: On this node.
        waiting_nodes: Those that have yet to delete their copies; the model is `removing` until they have.
    """

    name: str
    freed_bytes: int
    waiting_nodes: tuple[str, ...] = ()


def refuse_if_used(database: Database, name: str) -> None:
    """Return if nobody would miss a model now.

    Raises:
        ModelInUseError: If tasks need it, workers hold it or a task fetches it; saying which, and what to do.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.statement() as connection:
        users = list_users(connection, name)
    tasks = [user for user in users if user.kind == "task"]
    if tasks:
        waiting = sum(user.number for user in tasks if not user.running)
        running = sum(user.number for user in tasks if user.running)
        agents = ", ".join(sorted({user.name for user in tasks}))
        remedy = f"cancel them with 'bitinglip task cancel --model {name}', or remove it with --force"
        who = f"is needed by tasks of {agents}: {waiting:,} wait, {running:,} run"
        raise ModelInUseError(name, f"{who}; {remedy}")
    for user in users:
        if user.kind == "download":
            remedy = f"cancel that with 'bitinglip task cancel {user.name}', or remove it with --force"
            raise ModelInUseError(name, f"is being fetched by task {user.name}; {remedy}")
    if users:
        workers = ", ".join(user.name for user in users)
        remedy = "drain them, or remove it with --force: its files go when they let go of it"
        raise ModelInUseError(name, f"is held by the engine of {workers}; {remedy}")


def remove_model(database: Database, entry: ModelEntry, *, node: str, cache: ModelCache, force: bool) -> Removal:
    """Have a model removed on every node, and delete what this one has of it. A local folder's files stay.

    Args:
        database: Where it is registered.
        entry: What is removed.
        node: This node's name.
        cache: Its folder.
        force: Though it is in use here: then its files stay for as long. Copies on nodes that are gone are forgotten.

    Raises:
        ModelInUseError: If it is in use here. Nothing was changed.
        OSError: If a file cannot be deleted.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    repo, copy = entry.record.repo, entry.find_copy(node)
    if entry.record.source is not ModelSource.HUB or repo is None:
        with database.transaction() as connection:
            delete_copies(connection, entry.name)
            delete_entry(connection, entry.name)
        return Removal(entry.name, 0)
    with cache.lock_to_delete(repo) as is_free:
        if copy is not None and not is_free and not force:
            remedy = "wait until that has ended, or remove it with --force: its files go then"
            raise ModelInUseError(entry.name, f"is used on this node by an engine or a download; {remedy}")
        with database.transaction() as connection:
            set_removing(connection, entry.name)
            if force:
                delete_lost_copies(connection, entry.name, but=node)
            delete_entry(connection, entry.name)
        freed_bytes = 0
        if copy is not None and is_free:
            freed_bytes = delete_locked_copy(
                database, node=node, cache=cache, model=entry.name, repo=repo, commit=copy.commit
            )
    with database.statement() as connection:
        left = list_entries(connection, [entry.name])
    return Removal(entry.name, freed_bytes, tuple(copy.node for known in left for copy in known.copies))


def delete_locked_copy(database: Database, *, node: str, cache: ModelCache, model: str, repo: str, commit: str) -> int:
    """Delete a node's copy, and the model itself if it is being removed and this was the last; returns the bytes freed.

    Args:
        database: Where it is recorded.
        node: Whose copy.
        cache: The node's folder; the caller holds the model's `lock_to_delete`.
        model: As tasks name it.
        repo: On the hub.
        commit: What it is a copy of.

    Raises:
        OSError: If something of it cannot be deleted.
        DatabaseUnreachableError: If PostgreSQL is away. Nothing was deleted.
    """
    with database.transaction() as connection:
        delete_copy(connection, model, node)
        owners = list_owners(connection, node, repo, commit)
    freed_bytes = 0 if owners else cache.delete(repo, commit)
    with database.transaction() as connection:
        if is_removing(connection, model):
            delete_entry(connection, model)
    return freed_bytes
