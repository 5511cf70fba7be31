"""Before step 1: what no worker could ever do is refused at once, with the numbers, and does not wait in vain.

With no worker alive everything is accepted: it waits for the first. So is what a worker could have done that left a
short while ago, since it most likely starts again; a queue that refuses work whenever a worker restarts would not be
durable. Tasks of kinds without an engine are done by their agents, and recurring ones have nobody to hear a refusal.

Invariant: nothing is refused by a picture of the fleet older than the submission. Accepting may rest on one that is
`FRESH_SECONDS` old, so that a submission costs no statement more.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.task import TaskRequest
from bitinglip.errors import InfeasibleError
from bitinglip.registry.locate import measure_weights
from bitinglip.store.database import Database, retry_once
from bitinglip.store.fleet import list_fleet
from bitinglip.store.queues import list_sizes
from bitinglip.store.submissions import find_keyed

FRESH_SECONDS = 2.0

MEGA, GIGA = 10**6, 10**9


@dataclass(frozen=True, slots=True)
class Member:
    """A worker, as far as it matters to what it could ever do.

    Attributes:
        models: Those that it holds now.
        memory_bytes: What models may take there; None: no limit known.
        allowed_models: None: all.
        allowed_agents: None: all.
        is_alive: False for one that left a short while ago.
    """

    kinds: frozenset[str]
    models: frozenset[str] = frozenset()
    memory_bytes: int | None = None
    allowed_models: frozenset[str] | None = None
    allowed_agents: frozenset[str] | None = None
    is_alive: bool = True


@dataclass(frozen=True)
class FleetPicture:
    """What the registered workers can do.

    Attributes:
        sizes: Bytes that models take, as workers know it; of others the folder is asked, where this machine has it.
    """

    members: Sequence[Member]
    sizes: Mapping[str, int] = field(default_factory=dict)
    _able: set[tuple[str, str, str]] = field(default_factory=set)

    def find_obstacle(self, type_: str, model: str | None, agent_id: str) -> str | None:
        """Why no worker could ever do such a task, and what to do about it; None if one could, or none is alive."""
        key = type_, model or "", agent_id if self._asks_agents else ""
        if key in self._able:
            return None
        kind = find_kinds().get(type_)
        if (kind is not None and kind.engine is None) or not any(member.is_alive for member in self.members):
            return None
        obstacle = self._look_for_obstacle(type_, model or "", agent_id)
        if obstacle is None:
            self._able.add(key)
        return obstacle

    @cached_property
    def _asks_agents(self) -> bool:
        return any(member.allowed_agents is not None for member in self.members)

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
        """The picture, read again if it is older than that."""
        oldest = time.monotonic() - max_age_seconds
        seen = self._seen
        if seen is None or seen[0] < oldest:
            # One reads for all who ask at the same time.
            with self._lock:
                seen = self._seen
                if seen is None or seen[0] < oldest:
                    seen = self._seen = time.monotonic(), retry_once(lambda: read_fleet(database))
        return seen[1]


_watches: WeakKeyDictionary[Database, _Watch] = WeakKeyDictionary()
_watches_lock = threading.Lock()


def read_fleet(database: Database) -> FleetPicture:
    """What the workers that are registered now can do.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.statement() as connection:
        rows = list_fleet(connection)
        sizes = list_sizes(connection)
    members = [
        Member(
            frozenset(row.kinds),
            frozenset(row.models),
            row.memory_bytes,
            _freeze(row.allowed_models),
            _freeze(row.allowed_agents),
            row.is_alive,
        )
        for row in rows
    ]
    return FleetPicture(members, sizes)


def check_feasible(database: Database, requests: Sequence[TaskRequest]) -> None:
    """Refuse what no worker could ever do; what an idempotency key has recorded already is left to be found.

    Raises:
        InfeasibleError: For the first request that is, with the numbers and the remedy.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    watch = _get_watch(database)
    suspects = _list_obstacles(watch.look(database, max_age_seconds=FRESH_SECONDS), requests)
    if suspects:
        suspects = _list_obstacles(watch.look(database, max_age_seconds=0), [request for request, _ in suspects])
    recorded = _find_recorded(database, [request for request, _ in suspects])
    for request, obstacle in suspects:
        if (request.agent_id, request.idempotency_key) not in recorded:
            raise InfeasibleError(request.type, request.model, obstacle)


def _get_watch(database: Database) -> _Watch:
    with _watches_lock:
        return _watches.setdefault(database, _Watch())


def _list_obstacles(picture: FleetPicture, requests: Iterable[TaskRequest]) -> list[tuple[TaskRequest, str]]:
    return [
        (request, obstacle)
        for request in requests
        if (obstacle := picture.find_obstacle(request.type, request.model, request.agent_id)) is not None
    ]


def _find_recorded(database: Database, requests: Iterable[TaskRequest]) -> set[tuple[str, str | None]]:
    keys = [(request.agent_id, request.idempotency_key) for request in requests if request.idempotency_key]
    if not keys:
        return set()
    with database.statement() as connection:
        return {(row.agent_id, row.idempotency_key) for row in find_keyed(connection, keys)}


def _freeze(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _format_bytes(size: int) -> str:
    return f"{size / GIGA:.4g} GB" if size >= GIGA else f"{size / MEGA:.4g} MB"
