"""What surrounds the planner: the store's lanes and charges, and workers that claim, load, run, fail and hand back.

As in the real system: an agent is charged the recent mean at its grant, and the difference to the truth when the task
has ended; a run that failed or was lost costs nothing; a load is charged to the task that caused it; an agent without
waiting tasks is lifted when it returns.
"""

import heapq
import random
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from benchmarks.simulation.record import Record
from benchmarks.simulation.traces import PRIORITIES, Arrival, Gpu, Outage, Scenario
from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import Agent, Head, Lane, Plan, lift, plan_pool

DEPTH = 2
"""Tasks that a worker is given, per slot, as by the dispatcher."""

MEMORY = 0.9
"""Weight that a mean keeps with each new measurement, as in the store."""

LEASE_SECONDS = 8.0

ATTEMPTS = 3

Planner = Callable[..., Plan]


@dataclass(slots=True, eq=False)
class SimulatedTask:
    """A task on its way."""

    arrival: Arrival
    head: Head
    lane: "LaneState"
    charge: float = 0.0
    attempt: int = 1


@dataclass(slots=True, eq=False)
class LaneState:
    """A lane, as the store keeps it."""

    lane: Lane
    tasks: deque[SimulatedTask] = field(default_factory=deque)
    passed_at: float | None = None


@dataclass(slots=True, eq=False)
class WorkerState:
    """A worker process and its engine.

    Attributes:
        queue: What is reserved for it and not begun.
        running: What runs, and when it ends.
        models: Those loaded, or on their way, the least recently used first; with the time when they are ready.
    """

    gpu: Gpu
    id: uuid.UUID
    queue: deque[SimulatedTask] = field(default_factory=deque)
    running: dict[SimulatedTask, float] = field(default_factory=dict)
    models: dict[str, float] = field(default_factory=dict)
    yields: bool = False
    is_up: bool = True
    life: int = 0


class Cluster:
    """One pool, from its first event to its last."""

    def __init__(
        self,
        scenario: Scenario,
        planner: Planner = plan_pool,
        watch: Callable[[list[Lane], list[WorkerRoom], Plan], bool] | None = None,
    ) -> None:
        self.record = Record(scenario)
        self._scenario = scenario
        self._planner = planner
        self._watch = watch
        self._pick = random.Random(scenario.seed)
        self._sequence = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._now = 0.0
        self._agents: dict[str, Agent] = {}
        self._lanes: dict[tuple[str, str, str], LaneState] = {}
        self._waiting: dict[str, int] = {}
        self._means: dict[tuple[str, str], float] = dict(scenario.guesses)
        self._clock = 0.0
        self._missed: dict[str, float] = {}
        self._workers = {gpu.name: self._make_worker(gpu) for gpu in scenario.gpus}
        self._rooms: dict[uuid.UUID, WorkerState] = {worker.id: worker for worker in self._workers.values()}
        self._is_changed = False
        self.record.capacity = sum(DEPTH * gpu.slots for gpu in scenario.gpus)
        self.record.largest = max(scenario.guesses.values(), default=1.0)

    def run(self) -> Record:
        """Until all is done, or the scenario's end."""
        for arrival in self._scenario.arrivals:
            self._at(arrival.at, lambda arrival=arrival: self._arrive(arrival))
        for outage in self._scenario.outages:
            self._at(outage.at, lambda outage=outage: self._fail_worker(outage))
        until = self._scenario.until
        while self._events and (until is None or self._events[0][0] <= until):
            self._now = self._events[0][0]
            while self._events and self._events[0][0] == self._now:
                heapq.heappop(self._events)[2]()
            while self._is_changed:
                self._is_changed = False
                self._plan()
        self.record.ended_at = until or self._now
        for agent in self._waiting:
            self._count_waiting(agent, 0, is_end=True)
        return self.record

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._sequence), event))

    def _make_worker(self, gpu: Gpu) -> WorkerState:
        worker = WorkerState(gpu, uuid.UUID(int=self._pick.getrandbits(128)))
        worker.models = dict.fromkeys(gpu.preloaded, 0.0)
        return worker

    # The store's side.

    def _arrive(self, arrival: Arrival) -> None:
        agent = self._agents.get(arrival.agent)
        if agent is None:
            agent = Agent(arrival.agent, 0.0, self._scenario.weights.get(arrival.agent, 1.0))
            self._agents[arrival.agent] = agent
        if not self._waiting.get(agent.id):
            active = [other.virtual_time for other in self._agents.values() if self._waiting.get(other.id)]
            agent.virtual_time = lift(agent.virtual_time, active, self._clock)
        key = (arrival.agent, arrival.model, arrival.priority)
        state = self._lanes.get(key)
        if state is None:
            rank = PRIORITIES.index(arrival.priority)
            state = self._lanes[key] = LaneState(Lane("text", arrival.model, agent, arrival.priority, rank))
        number = next(self._sequence)
        state.tasks.append(SimulatedTask(arrival, Head(uuid.UUID(int=number), 1, number), state))
        self._count_waiting(agent.id, 1)

    def _count_waiting(self, agent: str, change: int, *, is_end: bool = False) -> None:
        before = self._waiting.get(agent, 0)
        after = 0 if is_end else before + change
        self._waiting[agent] = after
        stretches = self.record.backlogged[agent]
        if not before and after:
            stretches.append([self._now, float("inf")])
        elif before and not after:
            stretches[-1][1] = self.record.ended_at if is_end else self._now
        self._is_changed = self._is_changed or change > 0

    def _estimate(self, agent: str, model: str) -> tuple[float, bool]:
        own = self._means.get((agent, model))
        return (own, True) if own is not None else (self._means.get(("", model), 1.0), False)

    def _settle(self, task: SimulatedTask, cost: float, measured: float | None) -> None:
        agent = task.lane.lane.agent
        agent.virtual_time += (cost - task.charge) / agent.weight
        agent.in_flight -= 1
        if measured is not None:
            self.record.service.append((self._now, agent.id, cost))
            self.record.largest = max(self.record.largest, cost)
            for key in ((agent.id, task.arrival.model), ("", task.arrival.model)):
                self._means[key] = measured + MEMORY * (self._means.get(key, measured) - measured)
        self._is_changed = True

    def _return(self, task: SimulatedTask) -> None:
        """Make a task ready again, in its old place."""
        self._settle(task, 0.0, None)
        tasks = task.lane.tasks
        place = next((n for n, other in enumerate(tasks) if other.head.seq > task.head.seq), len(tasks))
        tasks.insert(place, task)
        self._count_waiting(task.lane.lane.agent.id, 1)

    # The dispatcher's side.

    def _plan(self) -> None:
        rooms = [self._make_room(worker) for worker in self._workers.values() if worker.is_up]
        room = sum(worker.free for worker in rooms)
        lanes = {id(state.lane): state for state in self._lanes.values() if state.tasks}
        for state in lanes.values():
            lane = state.lane
            lane.cost, lane.measured = self._estimate(lane.agent.id, lane.model)
            lane.heads = deque(task.head for task in islice(state.tasks, max(1, room)))
            lane.passed_seconds = None if state.passed_at is None else self._now - state.passed_at
        offered = [state.lane for state in lanes.values()]
        plan = self._planner(
            offered,
            rooms,
            sizes={lane.model: 1 for lane in offered if lane.model},
            grants=self.record.grants,
            swap_seconds=self._scenario.swap_seconds,
            # Twice what an agent alone on a worker gets while another waits for its model.
            copy_lag=2 * self._scenario.swap_seconds * max(gpu.slots for gpu in self._scenario.gpus),
        )
        self.record.rounds += 1
        if self._watch is not None:
            self.record.wasted += self._watch(offered, rooms, plan)
        self._reserve(plan, lanes)
        for worker in self._workers.values():
            worker.yields = worker.id in plan.yielding
            self._begin(worker)

    def _reserve(self, plan: Plan, lanes: dict[int, LaneState]) -> None:
        self.record.grants = plan.grants
        for item in plan.assignments:
            state = lanes[id(item.lane)]
            task = state.tasks.popleft()
            task.charge = item.charge
            self.record.largest = max(self.record.largest, item.charge)
            self._count_waiting(item.lane.agent.id, -1)
            self._rooms[item.worker.id].queue.append(task)
        if plan.assignments:
            self._clock = plan.assignments[-1].lane.agent.virtual_time
        placed = {item.lane.model for item in plan.assignments}
        for state in self._lanes.values():
            if state.lane.model in placed:
                state.passed_at = None
        for lane in plan.passed:
            state = lanes[id(lane)]
            state.passed_at = self._now if state.passed_at is None else state.passed_at
            self._missed.setdefault(lane.model, self._now)

    def _make_room(self, worker: WorkerState) -> WorkerRoom:
        held = [*worker.running, *worker.queue]
        gpu = worker.gpu
        return WorkerRoom(
            worker.id,
            gpu.name,
            frozenset({"text"}),
            gpu.slots,
            max(0, DEPTH * gpu.slots - len(held)),
            len(held),
            {model: 1 for model, ready in worker.models.items() if ready <= self._now},
            {task.arrival.model for task in held if task.arrival.model},
            gpu.models,
            unclaimed=len(worker.queue),
            urgent=sum(task.arrival.priority == "critical" for task in worker.queue),
        )

    # The worker's side.

    def _begin(self, worker: WorkerState) -> None:
        """Claim what is next while there are slots."""
        while worker.is_up and worker.queue and len(worker.running) < worker.gpu.slots:
            task = worker.queue[0]
            if worker.yields and task.arrival.priority != "critical":
                worker.queue.popleft()
                self.record.handed_back += 1
                self._return(task)
                continue
            load_seconds = self._load(worker, task.arrival.model)
            if load_seconds is None:
                return
            worker.queue.popleft()
            self._start(worker, task, load_seconds)

    def _load(self, worker: WorkerState, model: str) -> float | None:
        """Seconds for which this task loads its model; None if another must first come out of use."""
        if not model:
            return 0.0
        if model in worker.models:
            worker.models[model] = worker.models.pop(model)
            return 0.0
        in_use = {task.arrival.model for task in worker.running}
        for other in [name for name in worker.models if name not in in_use]:
            if len(worker.models) >= worker.gpu.models:
                del worker.models[other]
                self.record.evictions.append((self._now, worker.gpu.name, other))
        if len(worker.models) >= worker.gpu.models:
            return None
        worker.models[model] = self._now + worker.gpu.load_seconds
        self.record.loads.append((self._now, worker.gpu.name, model))
        if model in self._missed:
            self.record.passed.append(self._now + worker.gpu.load_seconds - self._missed.pop(model))
        return worker.gpu.load_seconds

    def _start(self, worker: WorkerState, task: SimulatedTask, load_seconds: float) -> None:
        arrival = task.arrival
        wait = self._now - arrival.at
        self.record.starts.append((self._now, arrival.agent, arrival.model, arrival.priority, wait))
        begins = max(self._now, worker.models.get(arrival.model, 0.0))
        seconds = arrival.cost / worker.gpu.speed
        is_failing = self._pick.random() < self._scenario.failure_rate
        ends = begins + seconds * (self._pick.random() if is_failing else 1.0)
        cost = arrival.cost + load_seconds * worker.gpu.speed
        worker.running[task] = ends
        life = worker.life
        self._at(ends, lambda: self._end(worker, task, cost, is_failing=is_failing, life=life))

    def _end(self, worker: WorkerState, task: SimulatedTask, cost: float, *, is_failing: bool, life: int) -> None:
        if worker.life != life:
            return
        del worker.running[task]
        self.record.ends.append((self._now, worker.gpu.name))
        if not is_failing:
            self._settle(task, cost, cost)
        else:
            self.record.failures += 1
            self._retry(task)
        self._begin(worker)

    def _retry(self, task: SimulatedTask) -> None:
        task.attempt += 1
        if task.attempt > ATTEMPTS:
            self._settle(task, 0.0, None)
        else:
            self._return(task)

    def _fail_worker(self, outage: Outage) -> None:
        worker = self._workers[outage.gpu]
        lost = [*worker.running, *worker.queue]
        worker.running.clear()
        worker.queue.clear()
        worker.models.clear()
        worker.is_up = False
        worker.life += 1
        life = worker.life
        self._at(self._now + LEASE_SECONDS, lambda: self._rescue(lost))
        self._at(self._now + max(LEASE_SECONDS, outage.seconds), lambda: self._revive(worker, life))

    def _rescue(self, lost: Sequence[SimulatedTask]) -> None:
        for task in lost:
            self._return(task)

    def _revive(self, worker: WorkerState, life: int) -> None:
        if worker.life == life:
            worker.is_up = True
            self._is_changed = True
