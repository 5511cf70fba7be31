"""What a task waits for now, and what would release it.

What the dispatcher has written of the task's lane is its own word: `closed` says which limit or lack is in the way,
`passed_at` that it had its turn and no place. The rest are facts as they are at the moment of asking: limits, workers,
and who goes before it. Of several reasons the one is told without whose end the others' ends would not help.

A task of a type that several pools serve waits in all of them; it is explained for the one where it is nearest.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

from sqlalchemy import Connection, Row

from bitinglip.domain.catalogue import DOWNLOAD, find_kinds
from bitinglip.domain.task import QueueState, Status
from bitinglip.errors import TaskNotFoundError
from bitinglip.lifecycle.ability import Obstacle, find_obstacle
from bitinglip.lifecycle.hindrance import Reason, find_limit
from bitinglip.lifecycle.line import LAST_SEQ, Line, count_room, find_holders, read_line
from bitinglip.store import explaining
from bitinglip.store.database import Database, retry_once
from bitinglip.store.lanes import LaneKey
from bitinglip.store.queues import list_open_workers, list_sizes
from bitinglip.store.server import count_dispatcher_connections

DISPATCHER_SECONDS = 5.0
"""A dispatcher asks for something each second; one that was silent for this long is stuck or gone."""

NAMED = 10
"""Workers or parents that are named; of more, their number is told."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task is where it is.

    Attributes:
        code: A `Reason`, stable.
        message: One sentence, with the numbers.
        release: What would release it; None: nothing has to.
        position: Tasks that go before it; None: not known, or it waits for something else.
        details: The numbers, by name.
    """

    code: str
    message: str
    release: str | None = None
    position: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def explain_task(database: Database, task_id: uuid.UUID, *, swap_seconds: float) -> Explanation:
    """What a task waits for now.

    Args:
        database: Where it is.
        task_id: The task.
        swap_seconds: How long dispatchers pass a task over before a model that others use makes room for its own.

    Raises:
        TaskNotFoundError: If there is none.
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def read() -> Explanation | None:
        with database.transaction(durable=False) as connection:
            task = explaining.get_standing(connection, task_id)
            return None if task is None else _explain(connection, task, swap_seconds)

    found = retry_once(read)
    if found is None:
        raise TaskNotFoundError(str(task_id))
    return found


def _explain(connection: Connection, task: Row[Any], swap_seconds: float) -> Explanation:
    if task.status != Status.PENDING:
        return _explain_run(task, _find_downloads(connection, [task]).get(task.id))
    state = QueueState(task.queue_state)
    match state:
        case QueueState.BLOCKED:
            parents = explaining.list_open_parents(connection, task.id)
            return _explain_parents(parents, _find_downloads(connection, parents))
        case QueueState.SCHEDULED:
            return _explain_schedule(task)
        case QueueState.RESERVED:
            return _explain_reservation(task)
        case QueueState.READY:
            key = LaneKey(task.type, task.model, task.agent_id, task.priority)
            return explain_ready(connection, key, seq=task.seq, swap_seconds=swap_seconds)[0]
        case _:
            assert_never(state)


def _find_downloads(connection: Connection, tasks: Sequence[Row[Any]]) -> Mapping[uuid.UUID, Row[Any]]:
    """What those of the tasks fetch that are downloads."""
    ids = [task.id for task in tasks if task.type == DOWNLOAD.name]
    return explaining.find_downloads(connection, ids) if ids else {}


def _explain_run(task: Row[Any], download: Row[Any] | None) -> Explanation:
    status = Status(task.status)
    if status is Status.IN_PROGRESS:
        seconds, worker = task.running_seconds, task.worker_name
        progress = task.progress if download is None else _measure_progress(download)
        details = {"worker": worker, "since": task.started_at, "progress": progress, "seconds": seconds}
        if task.cancel_requested_at is not None:
            return Explanation(Reason.CANCELLING, f"worker {worker} stops it, as it was cancelled", details=details)
        message = f"worker {worker} has run it for {seconds:,.1f} s, attempt {task.attempt}, {progress:.0%} done"
        return Explanation(Reason.IN_PROGRESS, message, "its end", details=details)
    details = {"error_code": task.error_code, "finished_at": task.finished_at}
    if status is Status.COMPLETED:
        message = f"it completed at {task.finished_at:%Y-%m-%d %H:%M:%S} UTC"
        return Explanation(Reason.COMPLETED, message, details=details)
    message = f"it has {status}: {task.error_code}" if status is Status.FAILED else "it was cancelled"
    if task.error_message:
        message = f"{message}: {task.error_message}"
    release = f"'bitinglip task retry {task.id}'" if status is Status.FAILED else "nothing; submit it again"
    return Explanation(Reason(status), message, release, details=details)


def _explain_parents(parents: Sequence[Row[Any]], downloads: Mapping[uuid.UUID, Row[Any]]) -> Explanation:
    states = [_describe_parent(parent, downloads.get(parent.id)) for parent in parents]
    message = f"it depends on {_join(states)}" if states else "all that it depends on have ended; it is decided next"
    details = {"parents": [_dump_parent(parent, downloads.get(parent.id)) for parent in parents]}
    release = "their completion" if len(parents) != 1 else "its completion"
    return Explanation(Reason.BLOCKED, message, release, details=details)


def _describe_parent(parent: Row[Any], download: Row[Any] | None) -> str:
    if download is None:
        return f"{parent.id} ({parent.status})"
    standing = f"{_measure_progress(download):.0%} done" if parent.status == Status.IN_PROGRESS else parent.status
    return f"{parent.id} (the download of model {download.model!r}, {standing})"


def _dump_parent(parent: Row[Any], download: Row[Any] | None) -> Mapping[str, Any]:
    document = {"id": str(parent.id), "type": parent.type, "status": parent.status, "queue_state": parent.queue_state}
    if download is None:
        return document
    return {**document, "model": download.model, "progress": _measure_progress(download)}


def _measure_progress(download: Row[Any]) -> float:
    """The part of a model that has come; 0 while its size is not known."""
    return (download.done_bytes or 0) / download.total_bytes if download.total_bytes else 0.0


def _explain_schedule(task: Row[Any]) -> Explanation:
    details = {"not_before": task.not_before, "seconds": task.due_seconds, "failures": task.failures}
    when = f"{task.not_before:%Y-%m-%d %H:%M:%S} UTC, in {max(0.0, task.due_seconds):,.1f} s"
    if task.failures and task.attempt > 1:
        message = f"{task.failures} of {task.max_attempts} attempts failed; it is tried again at {when}"
        return Explanation(Reason.RETRY_LATER, message, f"the time: {when}", details=details)
    return Explanation(Reason.SCHEDULED, f"it is not to start before {when}", f"the time: {when}", details=details)


def _explain_reservation(task: Row[Any]) -> Explanation:
    name, before = task.worker_name, task.running + task.reserved_before
    details = {"worker": name, "running": task.running, "reserved_before": task.reserved_before, "slots": task.slots}
    if not task.worker_alive:
        message = f"worker {name}, which it was given to, has gone silent"
        return Explanation(Reason.WORKER_SILENT, message, "the next sweep, which gives it to another", details=details)
    if not task.engine_up:
        message = f"the engine of worker {name}, which it was given to, is starting"
        if task.problem:
            message = f"{message}: {task.problem}"
        return Explanation(Reason.ENGINE_STARTING, message, "the engine's start", before, details)
    message = f"worker {name} has it at hand; it runs {task.running} on {task.slots} slots"
    if task.reserved_before:
        message = f"{message}, and {task.reserved_before} more begin before it"
    return Explanation(Reason.RESERVED, message, "the end of one of these", before, details)


def explain_ready(
    connection: Connection, key: LaneKey, *, seq: int = LAST_SEQ, swap_seconds: float
) -> tuple[Explanation, Line | None]:
    """Why a ready task of a lane is not given to a worker, and the line before it if it is only that it waits for.

    Args:
        connection: In a transaction.
        key: The task's lane.
        seq: The task's; the last one for a task that is not recorded.
        swap_seconds: As for `explain_task`.
    """
    kind = find_kinds().get(key.type)
    if kind is not None and kind.engine is None:
        release = f"'bitinglip agent next --agent {key.agent_id}'"
        return Explanation(Reason.AGENT_TAKES_IT, f"agent {key.agent_id!r} takes it itself", release), None
    lanes = explaining.list_lanes_of(connection, key)
    limits = explaining.get_limits(connection, key.agent_id)
    if limits is not None and (limit := find_limit(limits, {lane.closed for lane in lanes})) is not None:
        return Explanation(limit.reason, limit.message, limit.release, details=limit.details), None
    workers = list_open_workers(connection)
    size = list_sizes(connection).get(key.model, 0) if key.model else 0
    obstacles = {w.id: find_obstacle(w, key.type, key.model, agent_id=key.agent_id, size=size) for w in workers}
    able = [worker for worker in workers if obstacles[worker.id] is None]
    if not able:
        return _explain_inability(connection, key, workers, obstacles, size), None
    weight = 1.0 if limits is None else limits.weight
    by_pool = [[worker for worker in able if worker.pool == pool] for pool in sorted({w.pool for w in able})]
    lines = [read_line(connection, key, ours, seq=seq, weight=weight) for ours in by_pool]
    line = min(lines, key=lambda found: (max(0, found.position - found.room), found.position))
    ours = [worker for worker in able if worker.pool == line.pool]
    passed = next((lane.passed_seconds for lane in lanes if lane.pool == line.pool and lane.closed is None), None)
    if passed is not None and count_room(ours):
        return _explain_passing(key, ours, passed, swap_seconds, line), line
    return _explain_line(connection, key, ours, line), line


def _explain_inability(
    connection: Connection,
    key: LaneKey,
    workers: Sequence[Row[Any]],
    obstacles: Mapping[uuid.UUID, Obstacle | None],
    size: int,
) -> Explanation:
    if not workers:
        draining = explaining.count_draining(connection)
        message = "no worker takes tasks now" + (f"; {draining} that are alive drain" if draining else "")
        return Explanation(Reason.NO_WORKER, message, "'bitinglip worker start'", details={"draining": draining})
    others = [worker for worker in workers if obstacles[worker.id] is not Obstacle.OTHER_TYPES]
    if not others:
        kinds = ", ".join(sorted({kind for worker in workers for kind in worker.kinds}))
        message = f"none of {len(workers)} workers does {key.type!r}; they do {kinds}"
        return Explanation(Reason.NO_WORKER_FOR_TYPE, message, "a worker whose pool lists the type in pools.toml")
    waits = explaining.list_load_waits(connection, key.model)
    reasons = {w.name: _describe_obstacle(obstacles[w.id], w, key, size, waits.get(w.name)) for w in others}
    what = f"take model {key.model!r}" if key.model else "take it"
    message = f"no worker may {what}: {_join([f'{name}: {reason}' for name, reason in reasons.items()], '; ')}"
    codes = {obstacles[worker.id] for worker in others}
    release = "a worker that may take it"
    if Obstacle.LOAD_FAILED in codes:
        soonest = min((wait.retry_seconds for wait in waits.values()), default=0.0)
        release = f"the next try, in {max(0.0, soonest):,.1f} s"
    details = {
        "model_bytes": size or None,
        "workers": {w.name: {"code": obstacles[w.id], "reason": reasons[w.name]} for w in others},
    }
    return Explanation(Reason.NO_WORKER_FOR_MODEL, message, release, details=details)


def _describe_obstacle(
    obstacle: Obstacle | None, worker: Row[Any], key: LaneKey, size: int, wait: Row[Any] | None
) -> str:
    match obstacle:
        case Obstacle.AGENT_NOT_ALLOWED:
            return f"serves only agents {', '.join(worker.allowed_agents)}"
        case Obstacle.MODEL_NOT_ALLOWED:
            return f"may load only {', '.join(worker.allowed_models)}"
        case Obstacle.DOES_NOT_FIT:
            return f"it needs {size:,} bytes, the worker holds {worker.memory_bytes:,}"
        case Obstacle.LOAD_FAILED if wait is not None:
            until = f"{wait.retry_at:%H:%M:%S} UTC (in {max(0.0, wait.retry_seconds):,.1f} s)"
            return f"could not load it ({wait.failures} times, last: {wait.message}), not tried before {until}"
        case _:
            return "could not load it"


def _explain_passing(
    key: LaneKey, able: Sequence[Row[Any]], passed: float, swap_seconds: float, line: Line
) -> Explanation:
    remaining = max(0.0, swap_seconds - passed)
    details = {
        "passed_seconds": passed,
        "swap_in_seconds": remaining,
        "workers": {worker.name: sorted({*worker.models, *worker.in_use}) for worker in able[:NAMED]},
    }
    message = (
        f"it has been passed over for {passed:,.1f} s: no worker holds model {key.model!r}, and on none that may take "
        f"it ({_join([worker.name for worker in able])}) is there memory beside the models there"
    )
    release = f"an idle worker, or the swap in {remaining:,.1f} s"
    return Explanation(Reason.PASSED_OVER, message, release, line.position, details)


def _explain_line(connection: Connection, key: LaneKey, able: Sequence[Row[Any]], line: Line) -> Explanation:
    if line.room > line.position:
        return _explain_room(connection, line)
    holders = find_holders(able, key.model)
    names = _join([worker.name for worker in holders or able])
    if line.position:
        return _explain_others(key, line, _describe_full(line.slots, names))
    held = f"{line.running:,} running and {line.reserved:,} at hand"
    details = {**asdict(line), "workers": {worker.name: worker.held for worker in (holders or able)[:NAMED]}}
    if holders and count_room(able):
        message = f"it is next, and its model {key.model!r} is held by {names} only, whose {line.slots} slots are taken"
        release = "the end of one of the tasks there, or an empty slot elsewhere, which would load a second copy"
        return Explanation(Reason.MODEL_BUSY, f"{message}: {held}", release, 0, details)
    message = f"it is next, and {_describe_full(line.slots, names)}: {held}"
    return Explanation(Reason.WORKERS_FULL, message, "the end of one of the tasks there", 0, details)


def _explain_room(connection: Connection, line: Line) -> Explanation:
    details = asdict(line)
    if count_dispatcher_connections(connection, active_within_seconds=DISPATCHER_SECONDS):
        return Explanation(Reason.NEXT, "it is given to a worker now", "the next round", line.position, details)
    release = "a dispatcher: 'python -m bitinglip.dispatcher', or all with 'bitinglip up'"
    message = "there is room for it, and no dispatcher is active to give it out"
    return Explanation(Reason.NO_DISPATCHER, message, release, line.position, details)


def _explain_others(key: LaneKey, line: Line, full: str) -> Explanation:
    """The first of these that there are: more urgent tasks, other agents' turns, older tasks of its own."""
    about = "" if line.is_exact else "about "
    if line.urgent:
        reason = Reason.MORE_URGENT_FIRST
        message = f"{about}{_count(line.urgent, 'task')} of a more urgent priority than {key.priority}"
    elif line.own and (line.least is None or line.virtual_time < line.least or not line.rivals):
        # It is the agent's turn, and not this task's.
        reason = Reason.OLDER_FIRST
        message = f"{about}{_count(line.own, 'older task')} of agent {key.agent_id!r}"
        if line.rivals:
            message = f"{message}, and meanwhile {line.rivals:,} of {_count(line.agents, 'other agent')},"
    else:
        reason = Reason.AGENT_TURN
        times = f"its virtual time is {line.virtual_time:,.2f}, the least of the others {line.least or 0.0:,.2f}"
        message = f"it is not the turn of agent {key.agent_id!r}: {times}; "
        message += f"{about}{_count(line.rivals, 'task')} of {_count(line.agents, 'other agent')}"
        if line.own:
            message = f"{message}, and {line.own:,} older of its own,"
    message = f"{message} {'goes' if (line.urgent or line.position) == 1 else 'go'} before it"
    release = "the end of what goes before it"
    return Explanation(reason, f"{message}; {full}", release, line.position, asdict(line))


def _describe_full(slots: int, names: str) -> str:
    return f"the only slot of {names} is taken" if slots == 1 else f"all {slots:,} slots of {names} are taken"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _join(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - NAMED
    return separator.join([*names[:NAMED], *([f"{more:,} more"] if more > 0 else [])])
