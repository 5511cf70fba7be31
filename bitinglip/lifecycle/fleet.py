"""The workers and the models that there are, as one picture that is taken now and then.

With no worker alive everything could be done: it waits for the first. A worker that left a short while ago still
counts, since it most likely starts again.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from weakref import WeakKeyDictionary

from sqlalchemy import Connection

from bitinglip.domain.catalogue import DOWNLOAD, find_kinds
from bitinglip.registry.locate import is_hub_model, measure_weights
from bitinglip.store.database import Database, retry_once
from bitinglip.store.fleet import ModelPlace, list_fleet, list_places
from bitinglip.store.queues import list_sizes

SYSTEM_AGENT = "bitinglip"
"""Whose the downloads are that nobody asked for by name: they spend none of the limits of the agents that wait."""

MEGA, GIGA = 10**6, 10**9


@dataclass(frozen=True, slots=True)
class Member:
    """A worker, as far as it matters to what it could ever do.

    Attributes:
        models: Those that it holds now.
        memory_bytes: What models may take there; None: no limit known.
        allowed_models: None: all.
        allowed_agents: None: all.
        pulls: Patterns of the models that may be fetched for its tasks.
        is_alive: False for one that left a short while ago.
    """

    pool: str
    kinds: frozenset[str]
    models: frozenset[str] = frozenset()
    memory_bytes: int | None = None
    allowed_models: frozenset[str] | None = None
    allowed_agents: frozenset[str] | None = None
    pulls: Sequence[str] = ()
    is_alive: bool = True

    def allows(self, type_: str, model: str, agent_id: str) -> bool:
        """Whether it may take such a task, whatever the model's size."""
        return (
            type_ in self.kinds
            and (self.allowed_agents is None or agent_id in self.allowed_agents)
            and (self.allowed_models is None or model in self.allowed_models)
        )


@dataclass(frozen=True)
class FleetPicture:
    """What the registered workers can do, and which models of the hub they need not wait for.

    Attributes:
        sizes: Bytes that models take, as workers know it; of others the folder is asked, where this machine has it.
        places: The registered models of the hub, by name.
    """

    members: Sequence[Member]
    sizes: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, ModelPlace] = field(default_factory=dict)
    _able: set[tuple[str, str, str]] = field(default_factory=set)

    def find_obstacle(self, type_: str, model: str | None, agent_id: str) -> str | None:
        """Why no worker could ever do such a task, and what to do about it; None if one could, or none is alive."""
        key = type_, model or "", agent_id if self._asks_agents else ""
        if key in self._able:
            return None
        kind = find_kinds().get(type_)
        if (kind is not None and kind.engine is None) or not self._is_anyone_alive:
            return None
        obstacle = self._look_for_obstacle(type_, model or "", agent_id)
        if obstacle is None:
            self._able.add(key)
        return obstacle

    def lacks(self, type_: str, model: str | None) -> bool:
        """Whether such a task needs a model of the hub that no node has."""
        kind = find_kinds().get(type_)
        if model is None or kind is None or not kind.needs_model:
            return False
        place = self.places.get(model)
        return not (place is not None and place.is_stored) and model not in self._held and is_hub_model(model)

    def may_pull(self, type_: str, model: str, agent_id: str) -> bool:
        """Whether a worker that could do such a task may have its model fetched."""
        return any(
            fnmatchcase(model, pattern)
            for member in self.members
            if member.allows(type_, model, agent_id)
            for pattern in member.pulls
        )

    def find_absence(self, type_: str, model: str | None, agent_id: str) -> str | None:
        """Why such a task would wait in vain for its model, and what to do about it; None: it would not."""
        if model is None or not self._is_anyone_alive or not self.lacks(type_, model):
            return None
        place = self.places.get(model)
        if place is not None and (place.is_coming or place.download_id is not None):
            return None
        missing = f"model {model!r} is not here"
        if place is not None and place.error:
            missing = f"{missing}, and could not be fetched last: {place.error}"
        if self.may_pull(type_, model, agent_id):
            obstacle = self.find_obstacle(DOWNLOAD.name, None, SYSTEM_AGENT)
            return obstacle and f"{missing}; {obstacle}"
        return f"{missing}; fetch it: 'bitinglip model pull {model}'{self._describe_pulls(type_, model, agent_id)}"

    @cached_property
    def _is_anyone_alive(self) -> bool:
        return any(member.is_alive for member in self.members)

    @cached_property
    def _asks_agents(self) -> bool:
        return any(member.allowed_agents is not None for member in self.members)

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset().union(*(member.models for member in self.members))

    def _describe_pulls(self, type_: str, model: str, agent_id: str) -> str:
        able = [member for member in self.members if member.allows(type_, model, agent_id)]
        pulls = {member.pool: ", ".join(member.pulls) for member in able if member.pulls}
        if not pulls:
            return f" (pool {_join(member.pool for member in able)} fetches none by itself: it has no 'pulls')"
        return f" (by itself {'; '.join(f'pool {pool} fetches {names}' for pool, names in sorted(pulls.items()))})"

    def _look_for_obstacle(self, type_: str, model: str, agent_id: str) -> str | None:
        able = [m for m in self.members if type_ in m.kinds]
        if not able:
            kinds = _join(kind for member in self.members for kind in member.kinds)
            remedy = "start one whose pool lists it: 'bitinglip worker start --pool POOL'"
            return f"no worker does {type_!r}; the workers here do {kinds}; {remedy}"
        willing = [m for m in able if m.allowed_agents is None or agent_id in m.allowed_agents]
        if not willing:
            allowed = _join(name for m in able for name in m.allowed_agents or ())
            return f"no worker that does {type_!r} serves agent {agent_id!r}, only {allowed}; allow it in pools.toml"
        if not model:
            return None
        allowing = [m for m in willing if m.allowed_models is None or model in m.allowed_models]
        if not allowing:
            allowed = _join(name for m in willing for name in m.allowed_models or ())
            return f"no worker that does {type_!r} may load model {model!r}, only {allowed}; allow it in pools.toml"
        return self._find_lack_of_memory(model, allowing)

    def _find_lack_of_memory(self, model: str, members: Sequence[Member]) -> str | None:
        limits = [m.memory_bytes for m in members if m.memory_bytes is not None]
        # What is held fits, whatever an estimate says.
        if len(limits) < len(members) or any(model in m.models for m in members):
            return None
        size = self.sizes.get(model) or measure_weights(model) or 0
        if size <= max(limits):
            return None
        largest = _format_bytes(max(limits))
        where = f"the only worker for it holds {largest}"
        if len(members) > 1:
            where = f"the largest of {len(members):,} workers holds {largest}"
        remedy = "use a smaller model, or start a worker with more memory or more GPUs"
        return f"model {model!r} needs {_format_bytes(size)}, {where}; {remedy}"


class _Watch:
    """One process's picture of one database's fleet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[float, FleetPicture] | None = None

    def look(self, database: Database, *, max_age_seconds: float) -> FleetPicture:
        """The picture, taken again if it is older than that."""
        oldest = time.monotonic() - max_age_seconds
        seen = self._seen
        if seen is None or seen[0] < oldest:
            # One reads for all who ask at the same time.
            with self._lock:
                seen = self._seen
                if seen is None or seen[0] < oldest:
                    seen = self._seen = time.monotonic(), retry_once(lambda: _read(database))
        return seen[1]


_watches: WeakKeyDictionary[Database, _Watch] = WeakKeyDictionary()
_watches_lock = threading.Lock()


def look_at_fleet(database: Database, *, max_age_seconds: float) -> FleetPicture:
    """This process's picture of a database's fleet, taken again if it is older than that.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with _watches_lock:
        watch = _watches.setdefault(database, _Watch())
    return watch.look(database, max_age_seconds=max_age_seconds)


def read_fleet(connection: Connection) -> FleetPicture:
    """What the workers that are registered now can do, and where the models are."""
    members = [
        Member(
            pool=row.pool,
            kinds=frozenset(row.kinds),
            models=frozenset(row.models),
            memory_bytes=row.memory_bytes,
            allowed_models=_freeze(row.allowed_models),
            allowed_agents=_freeze(row.allowed_agents),
            pulls=tuple(row.pulls),
            is_alive=row.is_alive,
        )
        for row in list_fleet(connection)
    ]
    return FleetPicture(members, list_sizes(connection), list_places(connection))


def _read(database: Database) -> FleetPicture:
    with database.statement() as connection:
        return read_fleet(connection)


def _freeze(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _format_bytes(size: int) -> str:
    return f"{size / GIGA:.4g} GB" if size >= GIGA else f"{size / MEGA:.4g} MB"
