"""Room on a node's disk for one more model: who leaves, and who never does.

Copies of models of the hub leave in the order of `list_least_used`: what is being removed anyway, what was left half
fetched, then the least recently used. Never one that is pinned, that an engine or a download holds, or the model that
room is made for. Nothing leaves if all that may leave would not be enough.

What other downloads of the node have still to write counts as taken, if they were there first: so of two that do not
fit together the later one gives way, and not both.

Weakness: only registered models count against the budget; files that others put into the folder are seen in what the
disk has left.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from bitinglip.errors import DiskFullError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.removal import delete_locked_copy
from bitinglip.settings import ModelSettings
from bitinglip.store.copies import list_least_used
from bitinglip.store.database import Database
from bitinglip.store.entries import list_entries, note_error
from bitinglip.telemetry import get_logger

MAX_NAMED = 5
"""Models that an error names, of those that cannot leave."""

log = get_logger()


def make_room(
    database: Database, *, node: str, cache: ModelCache, model: str, needed_bytes: int, settings: ModelSettings
) -> None:
    """Return once the node has room for a model; delete others' copies if it must.

    Args:
        database: Where copies are recorded.
        node: This node's name.
        cache: Its folder.
        model: Who needs the room; none of its own files leave.
        needed_bytes: Of its files, that are not there yet.
        settings: The budget, and what is to stay free.

    Raises:
        DiskFullError: If there is no room and not enough may leave; nothing was deleted for it.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    cache.folder.mkdir(parents=True, exist_ok=True)
    while True:
        with database.statement() as connection:
            copies = list_least_used(connection, node)
        space = _measure_space(cache, copies, model, settings)
        if needed_bytes <= max(0, space.usable_bytes):
            return
        with ExitStack() as locks:
            leavers = _Leavers(cache, copies, locks)
            chosen = leavers.choose(model, needed_bytes - space.usable_bytes)
            if not chosen:
                reason = f"{space.describe(node, cache.folder)}; {leavers.describe()}; {_REMEDY}"
                raise DiskFullError(
                    model, needed_bytes=needed_bytes, free_bytes=max(0, space.usable_bytes), reason=reason
                )
            for copy in chosen:
                _evict(database, node, cache, copy, model)


_REMEDY = "make room with 'bitinglip model remove NAME', or raise BITINGLIP_MODEL_DISK_BYTES where it is the limit"


def measure_blobs(cache: ModelCache, repo: str, *, without: frozenset[str] = frozenset()) -> int:
    """Bytes on disk of a model's files, or only of those that no snapshot but these commits' links.

    Args:
        cache: The node's folder.
        repo: On the hub.
        without: Commits that are thought away, with all that is theirs alone; empty: nothing is.
    """
    home = cache.find_repo(repo)
    others = (path for path in (home / "snapshots").glob("*") if path.name not in without)
    kept = {os.path.realpath(link) for path in others for link in path.rglob("*")} if without else set()
    return sum(size for path, size in _list_sizes(home / "blobs") if os.path.realpath(path) not in kept)


def _list_sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("*"):
        try:
            yield path, path.stat().st_size
        except FileNotFoundError:
            # A part that was whole, and got its name, at this moment.
            continue


@dataclass(frozen=True, slots=True)
class _Space:
    """What a node has for a model, in bytes."""

    free: int
    spare: int
    budget: int | None
    taken: int
    promised: int

    @property
    def usable_bytes(self) -> int:
        """Below 0: more is taken than may be."""
        on_disk = self.free - self.spare
        return (on_disk if self.budget is None else min(on_disk, self.budget - self.taken)) - self.promised

    def describe(self, node: str, folder: Path) -> str:
        """In words, with the names of the settings."""
        spared = f"{self.spare:,} of them are left free (BITINGLIP_MODEL_SPARE_BYTES)"
        parts = [f"for it on node {node!r} in {folder}: the disk has {self.free:,} free, {spared}"]
        if self.budget is not None:
            parts.append(f"models take {self.taken:,} of a budget of {self.budget:,} (BITINGLIP_MODEL_DISK_BYTES)")
        if self.promised:
            parts.append(f"{self.promised:,} are for downloads under way")
        return ", ".join(parts)


def _measure_space(cache: ModelCache, copies: Sequence[Row[Any]], model: str, settings: ModelSettings) -> _Space:
    turns = {copy.model: (copy.last_used_at, copy.model) for copy in copies}
    promised = sum(
        max(0, (copy.total_bytes or 0) - copy.done_bytes)
        for copy in copies
        if copy.is_live and copy.model != model and (model not in turns or turns[copy.model] < turns[model])
    )
    repos = {copy.repo for copy in copies}
    return _Space(
        free=shutil.disk_usage(cache.folder).free,
        spare=settings.model_spare_bytes,
        budget=settings.model_disk_bytes,
        taken=sum(measure_blobs(cache, repo) for repo in repos) if settings.model_disk_bytes is not None else 0,
        promised=promised,
    )


class _Leavers:
    """The copies that may leave, as long as their locks are held.

    Args:
        cache: The node's folder.
        copies: The node's, first those that leave first.
        locks: Holds the locks of those that are chosen.
    """

    def __init__(self, cache: ModelCache, copies: Sequence[Row[Any]], locks: ExitStack) -> None:
        self._cache = cache
        self._copies = copies
        self._locks = locks
        self._is_free: dict[str, bool] = {}
        self._kept: list[str] = []
        self._freed_bytes = 0

    def choose(self, model: str, short_bytes: int) -> list[Row[Any]]:
        """Those whose leaving frees so many bytes, with their locks held; none if all together do not."""
        willing: list[Row[Any]] = []
        for copy in self._copies:
            if copy.model == model:
                continue
            obstacle = self._find_obstacle(copy)
            if obstacle is not None:
                self._kept.append(f"{copy.model} ({copy.total_bytes or 0:,}, {obstacle})")
                continue
            willing.append(copy)
            commits = self._find_free_commits(willing)
            self._freed_bytes = sum(
                measure_blobs(self._cache, repo, without=frozenset(gone)) for repo, gone in commits.items()
            )
            if self._freed_bytes >= short_bytes:
                return [copy for copy in willing if copy.commit_hash in commits.get(copy.repo, ())]
        return []

    def describe(self) -> str:
        """Why too few may leave."""
        if not self._kept and not self._freed_bytes:
            return "no other model could leave"
        more = len(self._kept) - MAX_NAMED
        named = ", ".join([*self._kept[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])
        could = f"others could leave and free {self._freed_bytes:,}"
        return f"{could}, cannot leave: {named}" if named else could

    def _find_obstacle(self, copy: Row[Any]) -> str | None:
        if copy.pinned:
            return "pinned"
        if copy.repo not in self._is_free:
            self._is_free[copy.repo] = self._locks.enter_context(self._cache.lock_to_delete(copy.repo))
        return None if self._is_free[copy.repo] else "in use"

    def _find_free_commits(self, willing: Sequence[Row[Any]]) -> dict[str, set[str]]:
        """By model on the hub, the commits that no copy needs but these."""
        wanted = Counter((copy.repo, copy.commit_hash) for copy in self._copies)
        commits: dict[str, set[str]] = {}
        for (repo, commit), count in Counter((copy.repo, copy.commit_hash) for copy in willing).items():
            if count == wanted[repo, commit]:
                commits.setdefault(repo, set()).add(commit)
        return commits


def _evict(database: Database, node: str, cache: ModelCache, copy: Row[Any], model: str) -> None:
    freed = delete_locked_copy(
        database, node=node, cache=cache, model=copy.model, repo=copy.repo, commit=copy.commit_hash
    )
    log.info("model_evicted", model=copy.model, node=node, freed_bytes=freed, to_make_room_for=model)
    message = f"it left node {node!r} to make room for {model!r}; fetch it again: 'bitinglip model pull {copy.model}'"
    with database.transaction() as connection:
        if any(not entry.copies for entry in list_entries(connection, [copy.model])):
            note_error(connection, copy.model, {"code": "evicted", "message": message, "retryable": True})
