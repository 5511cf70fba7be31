"""Run what is due by PostgreSQL's clock."""

import uuid
from collections.abc import Callable
from datetime import datetime

from bitinglip.beat.schedule import Chore, Recurring, Schedule
from bitinglip.errors import InvalidRequestError, LimitExceededError, ServerUnreachableError
from bitinglip.lifecycle.recur import read_marks, send_due, submit_due
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database
from bitinglip.telemetry import get_logger

RETRY_SECONDS = 5.0
"""Before what could not be done is tried again."""

MAX_SLEEP_SECONDS = 60.0

log = get_logger()


class DueRunner:
    """Runs the due times of a schedule, each at most once, however many do so.

    Args:
        schedule: What recurs.
        database: One connection is enough.
        settings: Limits of the tasks.
        send_chore: Publishes a chore's message and returns its id.
        on_submitted: Told the agent and the id of each task, after the commit.
    """

    def __init__(
        self,
        schedule: Schedule,
        database: Database,
        settings: TaskSettings,
        *,
        send_chore: Callable[[Chore], uuid.UUID],
        on_submitted: Callable[[str, uuid.UUID], None],
    ) -> None:
        self._schedule = schedule
        self._database = database
        self._settings = settings
        self._send_chore = send_chore
        self._on_submitted = on_submitted

    def run_due(self) -> float:
        """Run what is due now and return the seconds until it is worth looking again.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away. What is due stays due.
        """
        now, marks = read_marks(self._database, list(self._schedule))
        waits = [MAX_SLEEP_SECONDS]
        for name, entry in self._schedule.items():
            due = entry.times.find_last(now)
            if marks[name] < due and not self._run(name, entry, due):
                waits.append(RETRY_SECONDS)
            waits.append((entry.times.find_next(now) - now).total_seconds())
        return min(waits)

    def _run(self, name: str, entry: Recurring, due: datetime) -> bool:
        """Whether the due time is spent, by whomever."""
        found = log.bind(name=name, due=due.isoformat())
        try:
            if entry.chore is not None:
                chore = entry.chore
                if (sent := send_due(self._database, name, due, lambda: self._send_chore(chore))) is not None:
                    found.info("chore_sent", chore=chore, id=str(sent))
                return True
            request = entry.make_request(name, due)
            if (task_id := submit_due(self._database, name, due, request, self._settings)) is not None:
                self._on_submitted(request.agent_id, task_id)
                found.info("recurring_submitted", task_id=str(task_id))
        except (LimitExceededError, InvalidRequestError) as exc:
            found.warning("recurring_refused", reason=str(exc))
        except ServerUnreachableError as exc:
            found.warning("recurring_delayed", reason=str(exc))
            return False
        except Exception:
            # Whatever is wrong with one entry, the others go on.
            found.exception("recurring_failed")
            return False
        return True
