"""A task that this process took to do itself: keep it, then complete it, fail it or hand it back."""

import threading
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, ValidationError

from bitinglip.domain.payloads import dump_json
from bitinglip.domain.task import AgentId, ChannelId, Task, TaskError, describe_first_error
from bitinglip.errors import DatabaseUnreachableError, InvalidRequestError, LeaseLostError
from bitinglip.lifecycle import lease
from bitinglip.lifecycle.outcome import Outcome
from bitinglip.lifecycle.take import decide_failure, end, find_taken, keep, register_taker, take
from bitinglip.settings import TaskSettings, load_settings
from bitinglip.store.tasks import Doorbell, Ending
from bitinglip.streams.events import EventName
from bitinglip.streams.writer import AttemptEvents
from bitinglip.telemetry import get_logger

if TYPE_CHECKING:
    from bitinglip.client.sync import Client

DEFAULT_LEASE_SECONDS = 30.0
MIN_LEASE_SECONDS = 1.0
MAX_LEASE_SECONDS = 86_400.0

SHORTEST_POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.5

HANDED_BACK = {"code": "handed_back", "message": "whoever took it did not want it", "retryable": True}

log = get_logger()


class _Wish(BaseModel):
    """What `take_next` is asked for."""

    agent: AgentId
    timeout: float | None = Field(ge=0)
    channel: ChannelId | None
    lease_seconds: float = Field(ge=MIN_LEASE_SECONDS, le=MAX_LEASE_SECONDS)


class TakenTask:
    """One attempt at a task of type `agent`, held by whoever knows its token.

    As a context manager it is handed back, at no cost, if the block ends without `complete` or `fail`.

    Args:
        client: Of the system.
        token: What the lease is held by; the next call of the command line may name it.
        taken: The task and the attempt.
    """

    def __init__(self, client: "Client", token: uuid.UUID, taken: Doorbell) -> None:
        self._client = client
        self.token = token
        self._taken = taken
        self.task: Task = client.get(taken.task_id)
        self._ended = threading.Event()
        self.cancelled = False

    @property
    def id(self) -> uuid.UUID:
        """The task's id."""
        return self._taken.task_id

    def keep(self, lease_seconds: float) -> bool:
        """Hold it for so long from now; returns whether it was cancelled meanwhile.

        Raises:
            InvalidRequestError: If that is too short or too long.
            LeaseLostError: If it went to others.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        if not MIN_LEASE_SECONDS <= lease_seconds <= MAX_LEASE_SECONDS:
            remedy = f"{MIN_LEASE_SECONDS:,g} to {MAX_LEASE_SECONDS:,.0f} seconds"
            raise InvalidRequestError("lease_seconds", lease_seconds, remedy)
        self.cancelled = keep(self._client.database, self.token, self._taken, lease_seconds=lease_seconds)
        return self.cancelled

    def announce(self) -> None:
        """Tell listeners that the attempt has begun."""
        self._open_events(sent=0).publish(EventName.STARTED, attempt=self._taken.attempt)

    def keep_alive(self, lease_seconds: float) -> None:
        """Hold it, by a thread, until it ends, goes to others, or the client is closed."""

        def renew() -> None:
            while not self._ended.wait(lease_seconds / 3):
                if self._client.closed:
                    return
                try:
                    self.keep(lease_seconds)
                except LeaseLostError as exc:
                    log.warning("lease_lost", task_id=str(self.id), reason=str(exc))
                    return
                except DatabaseUnreachableError as exc:
                    log.warning("lease_not_renewed", task_id=str(self.id), reason=str(exc))

        threading.Thread(target=renew, name="taken-task", daemon=True).start()

    def complete(self, result: dict[str, Any] | None = None) -> None:
        """Record that it is done.

        Raises:
            InvalidRequestError: If the result is no JSON object.
            LeaseLostError: If another one took it meanwhile. Nothing is recorded.
            DatabaseUnreachableError: If PostgreSQL is away. Try again.
        """
        if result is not None and not isinstance(result, dict):
            raise InvalidRequestError("result", result, "is no JSON object; give a dict")
        try:
            dump_json(result or {})
        except ValueError as exc:
            raise InvalidRequestError("result", result, str(exc)) from exc
        self._end(Ending(self.id, self._taken.attempt, Outcome.COMPLETED, result=result or {}))

    def fail(self, message: str, *, code: str = "agent_failed", retryable: bool = False) -> None:
        """Record that it failed; a retryable failure is followed by another attempt, as long as there are any.

        Raises:
            InvalidRequestError: If the message or the code is no text.
            LeaseLostError: If another one took it meanwhile. Nothing is recorded.
            DatabaseUnreachableError: If PostgreSQL is away. Try again.
        """
        try:
            error = TaskError(code=code, message=message, retryable=retryable)
        except ValidationError as exc:
            raise describe_first_error(exc) from exc
        self._end(
            decide_failure(
                self._taken,
                failures=self.task.failures,
                max_attempts=self.task.max_attempts,
                code=error.code,
                message=error.message,
                retryable=error.retryable,
                base_seconds=load_settings(TaskSettings).base_retry_delay,
            )
        )

    def hand_back(self) -> None:
        """Make it ready again, at no cost.

        Raises:
            LeaseLostError: If another one took it meanwhile.
            DatabaseUnreachableError: If PostgreSQL is away. Its lease will end.
        """
        self._end(Ending(self.id, self._taken.attempt, Outcome.RELEASED, error=HANDED_BACK))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended.is_set():
            self.hand_back()

    def _end(self, ending: Ending) -> None:
        outcome = end(self._client.database, self.token, ending)
        self._ended.set()
        events = self._open_events(sent=1)
        match outcome:
            case Outcome.RETRIED | Outcome.RELEASED:
                events.publish(EventName(outcome), attempt=self._taken.attempt, error=ending.error)
            case _:
                events.publish(EventName.FINISHED, status=outcome, error=ending.error)

    def _open_events(self, *, sent: int) -> AttemptEvents:
        # An attempt that an agent makes has two events: one when it is taken and one, perhaps from another process,
        # when it ends.
        return AttemptEvents(self._client.events, self.id, self._taken.attempt, self.task.agent_id, sent=sent)


def take_next(
    client: "Client",
    agent: str,
    *,
    timeout: float | None,
    channel: str | None,
    lease_seconds: float,
    stop: threading.Event | None = None,
) -> TakenTask | None:
    """As `Client.next`; `stop` ends the wait."""
    try:
        wish = _Wish(agent=agent, timeout=timeout, channel=channel, lease_seconds=lease_seconds)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
    taker = _Taker(client, wish)
    found: TakenTask | None = None
    try:
        found = taker.wait(stop or threading.Event())
        return found
    finally:
        if found is None:
            taker.leave()


def find_taken_task(client: "Client", task_id: uuid.UUID, token: str | uuid.UUID) -> TakenTask:
    """As `Client.taken`."""
    try:
        taker_id = token if isinstance(token, uuid.UUID) else uuid.UUID(token)
    except ValueError as exc:
        raise InvalidRequestError("token", token, "is no token; pass the one that came with the task") from exc
    taken = find_taken(client.database, taker_id)
    if taken is None or taken.task_id != task_id:
        raise LeaseLostError(task_id, client.get(task_id).attempt)
    return TakenTask(client, taker_id, taken)


class _Taker:
    """Registered from its first breath until it leaves, or hands its registration on with the task."""

    def __init__(self, client: "Client", wish: _Wish) -> None:
        self._client = client
        self._wish = wish
        self._register()

    def wait(self, stop: threading.Event) -> TakenTask | None:
        """Take a task, as soon as there is one."""
        deadline = None if self._wish.timeout is None else time.monotonic() + self._wish.timeout
        pause = SHORTEST_POLL_SECONDS
        while not stop.is_set():
            self._stay_registered()
            taken = take(self._client.database, self._token, self._wish.agent, self._wish.channel)
            if taken is not None:
                task = TakenTask(self._client, self._token, taken)
                task.announce()
                task.keep_alive(self._wish.lease_seconds)
                return task
            left = LONGEST_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            stop.wait(min(pause, left))
            pause = min(2 * pause, LONGEST_POLL_SECONDS)
        return None

    def leave(self) -> None:
        """End the registration; what it holds is ready again."""
        lease.leave(self._client.database, self._token)

    def _register(self) -> None:
        seconds = self._wish.lease_seconds
        self._token = register_taker(self._client.database, self._wish.agent, lease_seconds=seconds)
        self._renew_at = time.monotonic() + seconds / 3

    def _stay_registered(self) -> None:
        if time.monotonic() < self._renew_at:
            return
        seconds = self._wish.lease_seconds
        if lease.renew(self._client.database, self._token, lease_seconds=seconds) is None:
            # This process was paused for longer than its lease.
            self._register()
        self._renew_at = time.monotonic() + seconds / 3
