"""Errors about tasks, their agents and their workers."""

import uuid

from bitinglip.errors.root import BitingLipError, NotFoundError, shorten


class AgentNotFoundError(NotFoundError):
    """No agent of that name has asked for anything, and nobody has set its limits."""

    code = "agent_not_found"

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        super().__init__(f"agent {shorten(agent_id)} is not known; list them with 'bitinglip agent list'")


class TaskNotFoundError(NotFoundError):
    """No task has that id."""

    code = "task_not_found"

    def __init__(self, task_id: object) -> None:
        self.task_id = task_id
        shown = task_id if isinstance(task_id, uuid.UUID) else shorten(task_id)
        super().__init__(f"task {shown} is not known; list them with 'bitinglip task list'")


class WorkerNotFoundError(NotFoundError):
    """No worker of that name is registered."""

    code = "worker_not_found"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"worker {shorten(name)} is not registered; list them with 'bitinglip worker list'")


class LimitExceededError(BitingLipError):
    """A submission was refused; nothing of it was recorded.

    Args:
        scope: `agent`, `channel` or `priority`.
        name: Whose limit it is.
        limit: Tasks that may wait at once; for `priority` the most urgent one allowed.
        waiting: Tasks that wait now; for `priority` the one asked for.
    """

    code = "limit_exceeded"
    exit_code = 4

    def __init__(self, scope: str, name: str, *, limit: object, waiting: object) -> None:
        self.scope = scope
        self.name = name
        self.limit = limit
        self.waiting = waiting
        if scope == "priority":
            message = f"agent {name!r} may submit up to priority {limit}, not {waiting}; submit with --priority {limit}"
        else:
            message = (
                f"{scope} {name!r} has {waiting:,} tasks waiting, the limit is {limit:,}; "
                "wait until some have run, or cancel some"
            )
        super().__init__(message)


class InfeasibleError(BitingLipError):
    """A submission was refused: no worker that is registered could ever do it. Nothing of it was recorded.

    Args:
        type_: The kind of task asked for.
        model: The model asked for.
        reason: What is in the way, with the numbers, and what would be right.
    """

    code = "infeasible"
    exit_code = 4

    def __init__(self, type_: str, model: str | None, reason: str) -> None:
        self.type = type_
        self.model = model
        super().__init__(reason)


class ConflictError(BitingLipError):
    """The task's state does not allow what was asked; nothing was changed.

    Args:
        task_id: The task.
        reason: What is in the way, and what would be right.
    """

    code = "conflict"

    def __init__(self, task_id: object, reason: str) -> None:
        self.task_id = task_id
        super().__init__(f"task {task_id}: {reason}")


class LeaseLostError(ConflictError):
    """Another one took the task meanwhile; what was made for it is not recorded."""

    code = "lease_lost"

    def __init__(self, task_id: object, attempt: int) -> None:
        self.attempt = attempt
        super().__init__(task_id, f"attempt {attempt} is no longer yours; stop working on it")


class TaskEndedError(BitingLipError):
    """The task has no result: it failed or was cancelled.

    Args:
        task_id: The task.
        status: `failed` or `cancelled`.
        error_code: The record's error code.
        message: The record's error message.
    """

    code = "task_ended"
    exit_code = 1

    def __init__(self, task_id: object, status: str, error_code: str, message: str) -> None:
        self.task_id = task_id
        self.status = status
        self.error_code = error_code
        super().__init__(f"task {task_id} {status} ({error_code}): {message}")


class ResultTimeoutError(BitingLipError):
    """The caller's time is over; the task goes on."""

    code = "result_timeout"
    exit_code = 1

    def __init__(self, task_id: object, seconds: float) -> None:
        super().__init__(
            f"task {task_id} has not ended within {seconds:g} s; it goes on: 'bitinglip task show {task_id}'"
        )
