"""Where a task can go: which worker holds its model, has room for it, or may make room.

Models stay put. A task goes to a worker that holds its model; else to one where the model fits beside what is there;
else a model must leave: at once on a worker that has nothing to do, and elsewhere only for a task that was passed over
too long. A model that is in use is never counted out: a worker that must first finish with it is given no more of its
tasks, only those of the model that comes.

Of several workers that would all have to load the model, one comes first whose node has its files, even if its engine
must start: that takes seconds, and a model takes minutes to cross a network.

The sizes are estimates until a model has been loaded and measured. One that is not known counts as fitting; the engine
process makes room by what it measures.
"""

import heapq
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Placement(StrEnum):
    """Why a task goes to a worker."""

    HELD = "held"
    """The worker holds its model, or needs none."""
    FITS = "fits"
    """The model fits beside what the worker holds."""
    IDLE = "idle"
    """The worker has nothing else to do; a model that it does not use leaves."""
    OVERDUE = "overdue"
    """It was passed over too long; a model leaves as soon as it is not in use."""
    BEHIND = "behind"
    """Its agent is far behind those that the worker serves, as other workers with its model have too much to do."""


class NoPlace(StrEnum):
    """Why a task goes nowhere."""

    NEVER = "never"
    """No worker may take it, however free."""
    FULL = "full"
    """Every worker that may take it has enough to do."""
    BUSY = "busy"
    """The workers that hold its model have enough to do; others have room."""
    NOT_NOW = "not_now"
    """No worker holds its model, one would have to leave, and it is too early for that."""


@dataclass(slots=True)
class WorkerRoom:
    """A worker that can be given `free` more tasks.

    Attributes:
        slots: Tasks that it runs at once.
        free: Tasks that it can be given; more than slots, so that the next is at hand when one ends.
        held: Tasks that it has been given and that have not ended.
        models: Bytes of each model that it has loaded.
        in_use: Models of the tasks that it holds, loaded or not.
        memory_bytes: What it may hold; None: no limit known.
        engine_up: Whether its engine can begin at once.
        avoids: Models that failed to load there a short while ago.
        stored: Models of the hub whose files its node has.
        allowed_models: None: all.
        allowed_agents: None: all.
        unclaimed: Tasks that are reserved for it and that it has not begun.
        urgent: How many of these are urgent.
    """

    id: uuid.UUID
    name: str
    kinds: frozenset[str]
    slots: int
    free: int
    held: int = 0
    models: dict[str, int] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    memory_bytes: int | None = None
    engine_up: bool = True
    avoids: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()
    allowed_models: frozenset[str] | None = None
    allowed_agents: frozenset[str] | None = None
    unclaimed: int = 0
    urgent: int = 0

    def may_take(self, type_: str, model: str, agent_id: str, size: int) -> bool:
        """Whether it could ever run such a task, however busy it is now."""
        return (
            type_ in self.kinds
            and (self.allowed_agents is None or agent_id in self.allowed_agents)
            and (not model or self.allowed_models is None or model in self.allowed_models)
            and model not in self.avoids
            and (self.memory_bytes is None or size <= self.memory_bytes)
        )


Key = tuple[str, str, str]
"""Type, model, and the agent where some worker asks who it is."""

Ranked = list[tuple[tuple[Any, ...], int]]
"""A heap of workers, by their number, the best first."""


class _Choice:
    """The workers that may take one kind of task, ranked when they are first asked for.

    Within a round room only shrinks, so a worker that dropped out of a ranking stays out, and a no stays right until
    the model is given to a worker.
    """

    def __init__(self, key: Key, size: int, able: dict[int, WorkerRoom], *, is_held: bool) -> None:
        self.model = key[1]
        self.size = size
        self.able = able
        self.is_held = is_held
        self.rankings: dict[Placement, Ranked] = {}
        self.refused: dict[tuple[bool, bool], NoPlace] = {}

    def pick(
        self, placement: Placement, rank: Callable[[WorkerRoom], tuple[Any, ...]], suits: Callable[[WorkerRoom], bool]
    ) -> WorkerRoom | None:
        """The best of the workers that suit; a rank may only grow worse within a round."""
        ranking = self.rankings.get(placement)
        if ranking is None:
            ranking = [(rank(worker), number) for number, worker in self.able.items() if suits(worker)]
            heapq.heapify(ranking)
            self.rankings[placement] = ranking
        while ranking:
            stamp, number = ranking[0]
            worker = self.able[number]
            if not suits(worker):
                heapq.heappop(ranking)
            elif (now := rank(worker)) != stamp:
                heapq.heapreplace(ranking, (now, number))
            else:
                return worker
        return None

    def add_holder(self, number: int, rank: tuple[Any, ...]) -> None:
        """Rank a worker that holds the model from now on."""
        if Placement.HELD in self.rankings:
            heapq.heappush(self.rankings[Placement.HELD], (rank, number))


def _rank_holder(worker: WorkerRoom, model: str) -> tuple[bool, bool, int]:
    """First one whose engine is up, that has loaded it, the freest."""
    return not worker.engine_up, bool(model) and model not in worker.models, -worker.free


class Fleet:
    """One pool's workers while a round gives their room away."""

    def __init__(self, workers: Sequence[WorkerRoom], sizes: Mapping[str, int]) -> None:
        self._workers = workers
        self._sizes = sizes
        self._open = {number: worker for number, worker in enumerate(workers) if worker.free > 0}
        self._numbers = {id(worker): number for number, worker in self._open.items()}
        self._named_agents = {agent for worker in workers for agent in worker.allowed_agents or ()}
        self._choices: dict[Key, _Choice] = {}
        self.slots = sum(worker.slots for worker in workers)
        self.free = sum(worker.free for worker in self._open.values())
        self.idle = sum(max(0, worker.slots - worker.held) for worker in self._open.values())

    def find_place(
        self, type_: str, model: str, agent_id: str, *, may_swap_idle: bool, may_swap: bool
    ) -> tuple[WorkerRoom, Placement] | NoPlace:
        """The worker for a task, and why it; or why none.

        Args:
            type_: Of the task.
            model: It needs; empty: none.
            agent_id: Whose it is.
            may_swap_idle: Whether a worker that has nothing to do may let a model go for it, or load another copy.
            may_swap: Whether any worker may.
        """
        choice = self._find_choice(type_, model, agent_id)
        refused = choice.refused.get((may_swap_idle, may_swap))
        if refused is not None:
            return refused
        place = self._find_worker(choice, may_swap_idle=may_swap_idle, may_swap=may_swap)
        if place is not None:
            return place
        refused = choice.refused[may_swap_idle, may_swap] = self._explain(choice, type_, model, agent_id)
        return refused

    def take(self, worker: WorkerRoom, model: str, *, urgent: bool = False) -> None:
        """Give a worker one task of a model."""
        self.idle -= worker.held < worker.slots
        worker.free -= 1
        worker.held += 1
        worker.unclaimed += 1
        worker.urgent += urgent
        self.free -= 1
        if model and model not in worker.in_use:
            worker.in_use.add(model)
            if model not in worker.models:
                self._count_holder(worker, model)

    def may_copy(self, worker: WorkerRoom, type_: str, model: str, agent_id: str) -> bool:
        """Whether a worker with room may change to a model that others hold: while no other does so already."""
        return (
            bool(model)
            and worker.may_take(type_, model, agent_id, self._sizes.get(model, 0))
            and not self._holds(worker, model)
            and not self._is_changing(worker)
            and not any(model in other.in_use and model not in other.models for other in self._workers)
        )

    def find_yielding(self, urgent: Iterable[tuple[Key, bool]]) -> set[uuid.UUID]:
        """Workers whose reservations give way, so that an urgent task begins in the next slot that frees.

        Only those to which it could then go: what gave way for one that stays away comes back at once, to give way
        again.

        Args:
            urgent: Types, models and agents of tasks that wait for room, and whether any worker may swap for them.
        """
        yielding = {
            worker.id
            for worker in self._workers
            # One that has a slot for each of its tasks has one for the urgent.
            if worker.urgent and worker.unclaimed > worker.urgent and worker.held > worker.slots
        }
        for (type_, model, agent_id), may_swap in dict.fromkeys((self._make_key(*key), swap) for key, swap in urgent):
            size = self._sizes.get(model, 0)
            yielding |= {
                worker.id
                for worker in self._workers
                if worker.unclaimed > worker.urgent
                and worker.may_take(type_, model, agent_id, size)
                and self._could_give_room(worker, model, size, may_swap=may_swap)
            }
        return yielding

    def _could_give_room(self, worker: WorkerRoom, model: str, size: int, *, may_swap: bool) -> bool:
        """Whether a task could begin on a worker if those gave way that have not begun there."""
        if not model or self._holds(worker, model):
            return self._can_hold(worker, model)
        stays = worker.held - (worker.unclaimed - worker.urgent)
        # With one slot: when it frees, nothing stays.
        if not stays or worker.slots == 1 or self._fits(worker, size):
            return True
        return may_swap and not self._is_changing(worker) and not any(self._holds(w, model) for w in self._workers)

    def _make_key(self, type_: str, model: str, agent_id: str) -> Key:
        return type_, model, agent_id if agent_id in self._named_agents else ""

    def _find_choice(self, type_: str, model: str, agent_id: str) -> _Choice:
        key = self._make_key(type_, model, agent_id)
        choice = self._choices.get(key)
        if choice is None:
            size = self._sizes.get(model, 0)
            able = {n: worker for n, worker in self._open.items() if worker.may_take(type_, model, agent_id, size)}
            # One that changes to another model holds it no more.
            is_held = any(
                self._holds(worker, model)
                and worker.may_take(type_, model, agent_id, size)
                and self._can_hold(worker, model)
                for worker in self._workers
            )
            choice = self._choices[key] = _Choice(key, size, able, is_held=is_held)
        return choice

    def _count_holder(self, worker: WorkerRoom, model: str) -> None:
        """It holds the model from now on."""
        number = self._numbers[id(worker)]
        for choice in self._choices.values():
            if choice.model == model and number in choice.able:
                choice.is_held = True
                choice.refused.clear()
                choice.add_holder(number, _rank_holder(worker, model))

    def _find_worker(
        self, choice: _Choice, *, may_swap_idle: bool, may_swap: bool
    ) -> tuple[WorkerRoom, Placement] | None:
        model, size = choice.model, choice.size
        holder = choice.pick(
            Placement.HELD,
            lambda w: _rank_holder(w, model),
            lambda w: w.free > 0 and (not model or self._holds(w, model)) and self._can_hold(w, model),
        )
        if holder is not None:
            return holder, Placement.HELD
        # Another copy is worth its loading only where a slot would else be empty, and no other model may have it.
        if may_swap_idle or not choice.is_held:
            fitting = choice.pick(
                Placement.FITS,
                lambda w: (model not in w.stored, not w.engine_up, -w.free, w.name),
                lambda w: w.free > 0 and self._fits(w, size) and (not choice.is_held or w.held < w.slots),
            )
            if fitting is not None:
                return fitting, Placement.FITS
        if may_swap_idle or may_swap:
            idle = choice.pick(
                Placement.IDLE,
                lambda w: (model not in w.stored, not w.engine_up, w.name),
                lambda w: w.free > 0 and not w.held,
            )
            if idle is not None:
                return idle, Placement.IDLE
        if may_swap and not choice.is_held:
            settled = choice.pick(
                Placement.OVERDUE,
                lambda w: (model not in w.stored, not w.engine_up, w.held, w.name),
                lambda w: w.free > 0 and not self._is_changing(w),
            )
            if settled is not None:
                return settled, Placement.OVERDUE
        return None

    def _explain(self, choice: _Choice, type_: str, model: str, agent_id: str) -> NoPlace:
        if any(worker.free > 0 for worker in choice.able.values()):
            return NoPlace.BUSY if choice.is_held else NoPlace.NOT_NOW
        is_able = bool(choice.able) or any(
            worker.may_take(type_, model, agent_id, choice.size) for worker in self._workers
        )
        return NoPlace.FULL if is_able else NoPlace.NEVER

    def _holds(self, worker: WorkerRoom, model: str) -> bool:
        return model in worker.models or model in worker.in_use

    def _can_hold(self, worker: WorkerRoom, model: str) -> bool:
        """Whether a task of a model that it holds would not keep it from changing to another."""
        in_use = worker.in_use
        if not model or worker.memory_bytes is None or (model in in_use and model not in worker.models):
            return True
        if len(in_use) <= (model in in_use):
            # It alone: `may_take` has asked whether it fits.
            return True
        return self._sum_bytes(worker, in_use | {model}) <= worker.memory_bytes

    def _fits(self, worker: WorkerRoom, size: int) -> bool:
        if worker.memory_bytes is None:
            return True
        return self._sum_bytes(worker, worker.in_use | worker.models.keys()) + size <= worker.memory_bytes

    def _is_changing(self, worker: WorkerRoom) -> bool:
        """Whether it has more in use than it can hold: one model leaves as soon as its tasks have ended."""
        return worker.memory_bytes is not None and self._sum_bytes(worker, worker.in_use) > worker.memory_bytes

    def _sum_bytes(self, worker: WorkerRoom, models: Iterable[str]) -> int:
        return sum(worker.models.get(model) or self._sizes.get(model, 0) for model in models)
