"""The scheduler that `celery -A bitinglip beat` runs, named by `beat_scheduler` in celeryconfig.py."""

import sys
import uuid
from functools import partial
from typing import Any, NoReturn

from celery import Celery, beat
from kombu.exceptions import KombuError

from bitinglip.beat.due import MAX_SLEEP_SECONDS, RETRY_SECONDS, DueRunner
from bitinglip.beat.schedule import Chore, find_schedule_file, read_schedule
from bitinglip.celery_app import CHORE_QUEUE, task_name
from bitinglip.errors import BitingLipError, RedisUnreachableError
from bitinglip.settings import ServerSettings, TaskSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import configure_logging, get_logger

_ONE_TRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

log = get_logger()


class Scheduler(beat.Scheduler):
    """Runs schedule.toml, and beside it whatever `beat_schedule` in celeryconfig.py holds.

    Weakness: entries of `beat_schedule` run as in any Celery: once for each beat, and not before a broker that is away
    is back.
    """

    max_interval = MAX_SLEEP_SECONDS

    def __init__(self, app: Celery, *arguments: Any, **options: Any) -> None:
        # Celery makes one more, a lazy one, to print the banner.
        try:
            configure_logging()
            self._file = find_schedule_file()
            self._recurring = read_schedule(self._file)
            super().__init__(app, *arguments, **options)
        except BitingLipError as exc:
            _give_up(exc)

    def setup_schedule(self) -> None:
        """Open what a beat needs. Without Celery's own clean-up of results: records are, and chores purge them."""
        self.merge_inplace(self.app.conf.beat_schedule)
        urls = load_settings(ServerSettings).find_urls()
        self._database = Database(urls.database_url, connections=1, name="bitinglip-beat")
        self._events = EventWriter(connect(urls.redis_url))
        self._runner = DueRunner(
            self._recurring,
            self._database,
            load_settings(TaskSettings),
            send_chore=partial(_send_chore, self.app),
            on_submitted=lambda agent_id, task_id: self._events.announce_queued(agent_id, [task_id]),
        )
        self._is_schema_checked = False
        log.info("beat_started", schedule=str(self._file), entries=len(self._recurring))

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Run what is due; returns the seconds to sleep."""
        return float(min(self._run_due(), super().tick(*arguments, **options)))

    def close(self) -> None:
        """Close every connection. Idempotent: Celery calls it twice when it is told to stop."""
        super().close()
        self._events.close(within_seconds=1)
        self._database.close()

    @property
    def info(self) -> str:
        """A line of the banner."""
        return f"    . schedule -> {self._file}"

    def _run_due(self) -> float:
        try:
            if not self._is_schema_checked:
                self._database.check_schema()
                self._is_schema_checked = True
            return self._runner.run_due()
        except BitingLipError as exc:
            # A server that is away, or a schema that somebody is about to upgrade.
            log.warning("beat_delayed", reason=str(exc))
            return RETRY_SECONDS


def _send_chore(app: Celery, chore: Chore) -> uuid.UUID:
    """Publish a chore for any worker; returns the message's id.

    Raises:
        RedisUnreachableError: If the broker is away.
    """
    with app.connection_for_write() as connection:
        # One try: a transaction waits for this.
        connection.transport_options = {**connection.transport_options, **_ONE_TRY}
        try:
            sent = app.send_task(
                task_name(chore), queue=CHORE_QUEUE, connection=connection, retry=False, ignore_result=True
            )
        except (KombuError, OSError, *connection.recoverable_connection_errors) as exc:
            raise RedisUnreachableError("the broker", str(exc)) from exc
    return uuid.UUID(sent.id)


def _give_up(exc: BitingLipError) -> NoReturn:
    sys.stderr.write(f"{exc}\n")
    raise SystemExit(exc.exit_code) from exc
