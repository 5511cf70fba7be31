"""When would a task run, and what would it cost? Foretold without recording anything.

The line before it (`line`) is `position` tasks long. Its workers' slots end one task each `running / slots` seconds;
the task begins with the end after those that give theirs to the tasks before it. The time of the n-th of such ends is
gamma distributed where tasks run for exponential times (their spread is their mean, as with generated texts), with
shape n. The mean itself is uncertain by a quarter (`SPREAD`), which is added as a variance: so the shape is

    1 / (1 / n + SPREAD ** 2)

and P50 and P90 are its quantiles, after Wilson and Hilferty, "The distribution of chi-square" (PNAS 1931).

Weakness: what comes later is not foreseen: tasks of more urgent bands, agents that return. Nor is the loading of a
model. `stats --calibration` says how quotes compared with the truth; its sample is of tasks that had to wait, since
those that begin at once are never seen waiting.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row

from bitinglip.domain.task import Priority, TaskRequest
from bitinglip.errors import LimitExceededError
from bitinglip.lifecycle.explain import Explanation, explain_ready
from bitinglip.lifecycle.feasible import check_feasible
from bitinglip.lifecycle.hindrance import Reason
from bitinglip.lifecycle.line import LAST_SEQ, Line
from bitinglip.store import quoting
from bitinglip.store.database import Database, retry_once
from bitinglip.store.explaining import get_limits, get_pool_charge
from bitinglip.store.lanes import LaneKey

SPREAD = 0.25
"""How uncertain a mean wait is by itself, relative to it."""

SAMPLE_SECONDS = 5.0
SAMPLE_TASKS = 1
"""So often, so many tasks are quoted to be compared with the truth; a round of the dispatcher waits meanwhile."""

DISPATCH_SECONDS = 0.05
"""P90 of a task for which there is room."""

KEPT_DAYS = 2

_Z90 = 1.2816


@dataclass(frozen=True, slots=True)
class Quote:
    """What is foretold of a task.

    Attributes:
        feasible: True: what no worker could ever do is refused with the error of a submission.
        code: What it would wait for first, a `Reason`.
        message: The same in a sentence.
        release: What would release it.
        position: Tasks that would go before it; None: not known.
        wait_p50_seconds: Until it begins, in half of all cases; None: not known, as it waits for something else.
        wait_p90_seconds: In nine of ten.
        engine_seconds: That it is expected to use; None: nothing like it was ever measured.
        pool: Whose workers would run it.
    """

    feasible: bool
    code: str
    message: str
    release: str | None
    position: int | None
    wait_p50_seconds: float | None
    wait_p90_seconds: float | None
    engine_seconds: float | None
    pool: str | None


def quote_request(database: Database, request: TaskRequest, *, swap_seconds: float) -> Quote:
    """Foretell what would become of a request that was submitted now; nothing is recorded.

    Args:
        database: Where it would be recorded.
        request: The task.
        swap_seconds: As for `explain_task`.

    Raises:
        InfeasibleError: If no registered worker could ever do it.
        LimitExceededError: If its agent may not ask so urgently.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    check_feasible(database, [request])
    key = LaneKey(request.type, request.model or "", request.agent_id, request.priority.value)

    def read() -> Quote:
        with database.transaction(durable=False) as connection:
            _check_priority(connection, request)
            quote = _quote(connection, key, swap_seconds=swap_seconds)
        return quote if quote.position is None else _put_off(quote, request)

    return retry_once(read)


def sample_quotes(database: Database) -> int:
    """Quote a few tasks that have just come, to see later what became of it; returns how many.

    Each `SAMPLE_SECONDS`, whoever asks first. Two dispatchers at once may both: that does no harm.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    quoted = 0
    with database.transaction(durable=False) as connection:
        for task in quoting.list_unquoted(connection, every_seconds=SAMPLE_SECONDS, most=SAMPLE_TASKS):
            key = LaneKey(task.type, task.model, task.agent_id, task.priority)
            quote = _quote(connection, key, seq=task.seq, swap_seconds=0.0)
            p50, p90, engine_seconds = quote.wait_p50_seconds, quote.wait_p90_seconds, quote.engine_seconds
            if p50 is not None and p90 is not None and engine_seconds is not None:
                quoting.record_quote(connection, task.id, p50=p50, p90=p90, engine_seconds=engine_seconds)
                quoted += 1
    return quoted


def read_calibration(database: Database) -> Mapping[str, Any]:
    """How the last day's quotes compared with the truth, as `store.quoting.compare_quotes` says.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        return quoting.compare_quotes(connection)


def forget_old(database: Database) -> None:
    """Delete quotes and the use of each minute that nobody asks for any more.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        quoting.forget_measures(connection, days=KEPT_DAYS)


def _check_priority(connection: Connection, request: TaskRequest) -> None:
    agent = get_limits(connection, request.agent_id)
    allowed = agent.max_priority if agent else None
    if allowed is not None and request.priority.rank < Priority(allowed).rank:
        raise LimitExceededError("priority", request.agent_id, limit=allowed, waiting=request.priority.value)


def _quote(connection: Connection, key: LaneKey, *, seq: int = LAST_SEQ, swap_seconds: float) -> Quote:
    explanation, line = explain_ready(connection, key, seq=seq, swap_seconds=swap_seconds)
    if line is None:
        return _make(explanation, None, None, None)
    limits = get_limits(connection, key.agent_id)
    waits = None if explanation.code == Reason.NO_DISPATCHER else _foretell(line, limits)
    return _make(explanation, line, waits, _foretell_engine_seconds(connection, line))


def _make(
    explanation: Explanation, line: Line | None, waits: tuple[float, float] | None, engine_seconds: float | None
) -> Quote:
    p50, p90 = waits or (None, None)
    return Quote(
        True,
        explanation.code,
        explanation.message,
        explanation.release,
        None if line is None else line.position,
        p50,
        p90,
        engine_seconds,
        None if line is None else line.pool,
    )


def _foretell(line: Line, limits: Row[Any] | None) -> tuple[float, float]:
    """P50 and P90 of the seconds until it begins."""
    mean_running = line.seconds_before / line.position if line.position else line.running_seconds
    ends = line.position + line.running + line.reserved + 1 - line.slots
    mean = ends * mean_running / line.slots
    if limits is not None and limits.max_running is not None:
        # Its own tasks take turns in the few places that they may have.
        own_ends = line.own + limits.in_flight + 1 - limits.max_running
        if own_ends * line.running_seconds / limits.max_running > mean:
            ends, mean = own_ends, own_ends * line.running_seconds / limits.max_running
    if ends <= 0:
        return 0.0, DISPATCH_SECONDS
    shape = 1 / (1 / ends + SPREAD**2)
    p50, p90 = (mean / shape * _gamma_quantile(shape, z) for z in (0.0, _Z90))
    return p50, max(p90, DISPATCH_SECONDS)


def _gamma_quantile(shape: float, z: float) -> float:
    """Where the gamma distribution of that shape and scale 1 is, `z` standard deviations of a normal one up."""
    return float(shape * (1 - 1 / (9 * shape) + z / (3 * shape**0.5)) ** 3)


def _foretell_engine_seconds(connection: Connection, line: Line) -> float | None:
    if not line.measured:
        return None
    charge = get_pool_charge(connection, line.pool)
    # In other units its cost says nothing of seconds.
    return line.cost / charge.speed if charge and charge.charge == "seconds" else line.running_seconds


def _put_off(quote: Quote, request: TaskRequest) -> Quote:
    """What it means for the wait that the task is not ready at once."""
    code, message, release = quote.code, quote.message, quote.release
    p50, p90 = quote.wait_p50_seconds, quote.wait_p90_seconds
    if request.depends_on:
        parents = len(request.depends_on)
        code, message = Reason.BLOCKED, f"it depends on {parents:,} task{'s' * (parents != 1)}; then: {message}"
        release, p50, p90 = "its completion" if parents == 1 else "their completion", None, None
    elif request.not_before is not None:
        delay = max(0.0, (request.not_before - datetime.now(UTC)).total_seconds())
        when = f"{request.not_before.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        code, message, release = (
            Reason.SCHEDULED,
            f"it is not to start before {when}; then: {message}",
            f"the time: {when}",
        )
        p50, p90 = (None if wait is None else wait + delay for wait in (p50, p90))
    return Quote(quote.feasible, code, message, release, quote.position, p50, p90, quote.engine_seconds, quote.pool)
