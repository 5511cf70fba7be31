"""Every error that BitingLip raises on purpose, and what to do about it.

    BitingLipError
    ├── ConfigurationError          a setting or pools.toml is wrong
    ├── InvalidRequestError         a field of a request is wrong
    │   └── InvalidModelError       a model cannot be used: no safetensors, custom code, a damaged file
    ├── NotFoundError
    │   ├── AgentNotFoundError
    │   ├── TaskNotFoundError
    │   ├── ModelNotFoundError
    │   ├── HubNotFoundError        the hub has no such model, revision or file
    │   └── WorkerNotFoundError
    ├── ModelExistsError            a model of that name is registered already
    ├── ModelInUseError             a model cannot be removed while it is used
    ├── GatedModelError             the hub gives the model to those only whom its owners let in
    ├── ModelDamagedError           bytes differ from the manifest, again and again
    ├── DiskFullError               a node has no room for a model
    ├── DownloadStoppedError        a download was told to stop
    ├── ServerUnreachableError
    │   ├── DatabaseUnreachableError
    │   ├── RedisUnreachableError
    │   ├── HubUnreachableError     the hub does not answer, or too slowly, or has enough for now
    │   ├── SystemNotRunningError
    │   └── ChildStartError         (embedded/child.py) a server or worker did not come up
    ├── SchemaVersionError          the database is older or newer than this code
    ├── LimitExceededError          refused: the agent or channel has too much waiting, or asks too urgently
    ├── InfeasibleError             refused: no worker that is registered could ever do it
    ├── ConflictError               the task's state does not allow it; nothing was changed
    │   └── LeaseLostError          another one took the task meanwhile
    ├── TaskEndedError              the task has no result: it failed or was cancelled
    ├── ResultTimeoutError          the task goes on; the caller stopped waiting
    └── EngineError
        ├── ModelTooLargeError      a model needs more memory than an engine may use
        ├── GpuUnreadableError      (worker/hardware.py) the driver does not say what a GPU's memory holds
        └── EngineBrokenError       the engine cannot go on; its process must end

An error carries data and builds its message from it: what is wrong, which value, and the remedy. A request's errors
cross process borders as `(code, message, retryable)`, never as pickled exceptions.
"""

import uuid
from typing import ClassVar


class BitingLipError(Exception):
    """Root of the tree.

    Attributes:
        code: Stable, snake_case; stored with a failed task and printed by `--json`.
        exit_code: What the command line exits with.
        retryable: Whether the same may succeed a while later.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class ConfigurationError(BitingLipError):
    """A setting or a line of pools.toml is wrong.

    Args:
        problems: One sentence each: the name, the value, the bound or the remedy.
    """

    code = "configuration"
    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InvalidRequestError(BitingLipError):
    """A field of a request is wrong.

    Args:
        field: The field's name, as the caller wrote it.
        value: The value, shortened.
        remedy: What would be right.
    """

    code = "invalid_request"
    exit_code = 2

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {_shorten(value)}: {remedy}")


class InvalidModelError(InvalidRequestError):
    """A model folder cannot be used: pickled weights, custom code, a damaged file."""

    code = "invalid_model"


class NotFoundError(BitingLipError):
    """Nothing has that name."""

    code = "not_found"
    exit_code = 3


class AgentNotFoundError(NotFoundError):
    """No agent of that name has asked for anything, and nobody has set its limits."""

    code = "agent_not_found"

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        super().__init__(f"agent {_shorten(agent_id)} is not known; list them with 'bitinglip agent list'")


class TaskNotFoundError(NotFoundError):
    """No task has that id."""

    code = "task_not_found"

    def __init__(self, task_id: object) -> None:
        self.task_id = task_id
        shown = task_id if isinstance(task_id, uuid.UUID) else _shorten(task_id)
        super().__init__(f"task {shown} is not known; list them with 'bitinglip task list'")


class ModelNotFoundError(NotFoundError):
    """The model is neither a folder nor known to any worker."""

    code = "model_not_found"

    def __init__(self, model: str, known: list[str]) -> None:
        self.model = model
        names = ", ".join(known) or "none"
        remedy = f"name one of ({names}), a folder with safetensors, or fetch it: 'bitinglip model pull {model}'"
        super().__init__(f"model: {_shorten(model)}: not known; {remedy}")


class HubNotFoundError(NotFoundError):
    """The hub has no such model, revision or file, or does not show it to us.

    Args:
        model: As it was asked for.
        reason: What was not found, and what would be right.
    """

    code = "model_not_found"

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {_shorten(model)}: {reason}")


class ModelExistsError(BitingLipError):
    """A model of that name is registered already."""

    code = "model_exists"

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model {model!r} is registered already; see 'bitinglip model show {model}'")


class ModelInUseError(BitingLipError):
    """A model cannot be removed while it is used.

    Args:
        model: Its name.
        reason: Who uses it, and what to do.
    """

    code = "model_in_use"

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {model!r} {reason}")


class GatedModelError(BitingLipError):
    """The hub gives the model to those only whom its owners let in.

    Args:
        model: Its name.
        page: Where access is asked for.
        has_token: Whether a token was sent.
    """

    code = "gated_model"
    exit_code = 4

    def __init__(self, model: str, page: str, *, has_token: bool) -> None:
        self.model = model
        if has_token:
            remedy = f"the token in HF_TOKEN is not one of those; ask for access at {page}, or set another token"
        else:
            remedy = (
                f"ask for access at {page}, then set HF_TOKEN for the workers, or run 'hf auth login' as their user"
            )
        super().__init__(f"model {model!r} is gated, its owners choose who gets it: {remedy}")


class ModelDamagedError(BitingLipError):
    """Bytes differ from the manifest, again and again.

    Args:
        model: Its name.
        reason: Which file, what it is and should be, and what to do.
    """

    code = "model_damaged"
    retryable = True

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {model!r}: {reason}")


class DiskFullError(BitingLipError):
    """A node has no room for a model; nothing half is left behind.

    Args:
        model: Its name.
        needed_bytes: That are not there yet.
        free_bytes: What there is for them.
        reason: Where, and what to do.
    """

    code = "disk_full"

    def __init__(self, model: str, *, needed_bytes: int, free_bytes: int, reason: str) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(f"model {model!r} needs {needed_bytes:,} bytes more, {free_bytes:,} are free {reason}")


class DownloadStoppedError(BitingLipError):
    """A download was told to stop; the files that are whole stay."""

    code = "cancelled"

    def __init__(self, model: str) -> None:
        super().__init__(f"the download of {model!r} was stopped; the files that are whole stay")


class WorkerNotFoundError(NotFoundError):
    """No worker of that name is registered."""

    code = "worker_not_found"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"worker {_shorten(name)} is not registered; list them with 'bitinglip worker list'")


class ServerUnreachableError(BitingLipError):
    """A server does not answer."""

    code = "server_unreachable"
    exit_code = 5


class DatabaseUnreachableError(ServerUnreachableError):
    """PostgreSQL does not answer or refuses the login."""

    code = "database_unreachable"

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(
            f"PostgreSQL at {address} cannot be used: {reason}; check BITINGLIP_DATABASE_URL and that the server runs"
        )


class RedisUnreachableError(ServerUnreachableError):
    """Redis does not answer or refuses the login."""

    code = "redis_unreachable"

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(
            f"Redis at {address} cannot be used: {reason}; check BITINGLIP_REDIS_URL and that the server runs"
        )


class HubUnreachableError(ServerUnreachableError):
    """The hub does not answer, or too slowly, or has enough for now.

    Args:
        address: Of the hub.
        reason: What happened.
    """

    code = "hub_unreachable"
    retryable = True

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(f"the hub at {address} cannot be used: {reason}; check HF_ENDPOINT and the network")


class SystemNotRunningError(ServerUnreachableError):
    """No URLs are configured and no embedded system runs."""

    code = "system_not_running"

    def __init__(self, data_dir: object) -> None:
        super().__init__(
            f"no system runs in {data_dir}; start one with 'bitinglip up', "
            "or set BITINGLIP_DATABASE_URL and BITINGLIP_REDIS_URL"
        )


class SchemaVersionError(BitingLipError):
    """The database's schema is not the one this code was written for."""

    code = "schema_version"
    exit_code = 5

    def __init__(self, found: str | None, expected: str, remedy: str) -> None:
        self.found = found
        self.expected = expected
        super().__init__(f"the database is at revision {found or 'none'}, this code needs {expected}; {remedy}")


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


class EngineError(BitingLipError):
    """The engine could not do something; the caller's request is not to blame."""

    code = "engine_error"


class ModelTooLargeError(EngineError):
    """A model needs more memory than an engine may use.

    Args:
        model: Its name.
        needed_bytes: On the fullest device.
        budget_bytes: What the engine may use there.
        parts: What the needed bytes are for, where that is known.
    """

    code = "model_too_large"

    def __init__(self, model: str, *, needed_bytes: int, budget_bytes: int, parts: str = "") -> None:
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        super().__init__(
            f"model {model!r} needs {needed_bytes:,} bytes on a device{parts}, of a budget of {budget_bytes:,}; "
            "give the pool a larger memory_share or more GPUs a worker, or choose a smaller model"
        )


class EngineBrokenError(EngineError):
    """The engine cannot go on (a poisoned CUDA context); its process must end."""

    code = "engine_broken"


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    if len(text) <= limit:
        return text
    length = len(value) if isinstance(value, str) else len(text)
    return f"{text[:limit]}... ({length:,} characters)"
