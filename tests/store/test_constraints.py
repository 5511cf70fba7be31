"""The database refuses what validation refuses, whoever writes."""

import uuid

import pytest
from sqlalchemy.exc import DataError, IntegrityError

from bitinglip.store.database import Database
from tests.factories import execute, make_running, make_worker, submit

TASKS = {
    "tasks_queue_state_while_pending": "queue_state = NULL",
    "tasks_finished_when_final": "status = 'cancelled', queue_state = NULL",
    "tasks_running_has_worker": "status = 'in_progress', queue_state = NULL",
    "tasks_reserved_has_worker": "queue_state = 'reserved'",
    "tasks_scheduled_has_time": "queue_state = 'scheduled'",
    "tasks_failed_has_error": "status = 'failed', queue_state = NULL, finished_at = now()",
    "tasks_attempt_from_one": "attempt = 0",
    "tasks_failures_bounded": "failures = max_attempts + 1",
    "tasks_max_attempts_bounded": "max_attempts = 12",
    "tasks_progress_fraction": "progress = 1.1",
    "tasks_agent_id_length": "agent_id = repeat('a', 101)",
    "tasks_user_id_length": "user_id = ''",
    "tasks_channel_id_digits": "channel_id = '1234567890123456'",
}
DETAILS = {
    "task_details_title_length": "title = repeat('t', 201)",
    "task_details_description_length": "description = repeat('d', 2001)",
    "task_details_payload_object": "payload = '[]'",
    "task_details_metadata_object": "metadata = '\"text\"'",
}
OTHERS = {
    "agents_max_queued_bounded": "UPDATE agents SET max_queued = 0",
    "dependencies_not_on_itself": "INSERT INTO dependencies SELECT id, id FROM tasks",
    "recurring_name_length": "INSERT INTO recurring (name, last_due_at) VALUES ('', now())",
    "models_source_known": "INSERT INTO models (name, source) VALUES ('m', 'the web')",
    "model_copies_state_known": """
        WITH model AS (INSERT INTO models (name, source) VALUES ('m', 'hub') RETURNING name)
        INSERT INTO model_copies (model, node, state, folder, commit_hash) SELECT name, 'n', 'half', 'f', 'c' FROM model
    """,
}

WORKERS = {
    "workers_state_known": "state = 'asleep'",
    "workers_slots_bounded": "slots = 0",
    "workers_speed_positive": "speed = 0",
    "workers_charge_known": "charge = 'beauty'",
}
AGENTS = {
    "agents_weight_bounded": "weight = 0",
    "agents_id_length": "id = ''",
    "agents_max_running_bounded": "max_running = 0",
    "agents_daily_seconds_positive": "daily_seconds = 0",
    "agents_daily_tokens_positive": "daily_tokens = -1",
}


@pytest.mark.parametrize(("constraint", "change"), TASKS.items())
def test_a_task_that_makes_no_sense_is_refused(database: Database, constraint: str, change: str) -> None:
    submit(database)

    with pytest.raises(IntegrityError, match=constraint):
        execute(database, f"UPDATE tasks SET {change}")


@pytest.mark.parametrize("channel", ["1" * 16, "1" * 20, "12345678901234567x", "", "\uff11" * 18, "1" * 18 + "\n"])
def test_a_channel_is_17_to_19_digits(database: Database, channel: str) -> None:
    submit(database)

    with pytest.raises(IntegrityError, match="tasks_channel_id_digits"):
        execute(database, "UPDATE tasks SET channel_id = :channel", channel=channel)


@pytest.mark.parametrize(("constraint", "change"), DETAILS.items())
def test_details_out_of_bounds_are_refused(database: Database, constraint: str, change: str) -> None:
    submit(database)

    with pytest.raises(IntegrityError, match=constraint):
        execute(database, f"UPDATE task_details SET {change}")


@pytest.mark.parametrize(("constraint", "change"), WORKERS.items())
def test_a_worker_that_makes_no_sense_is_refused(database: Database, constraint: str, change: str) -> None:
    make_worker(database)

    with pytest.raises(IntegrityError, match=constraint):
        execute(database, f"UPDATE workers SET {change}")


@pytest.mark.parametrize(("constraint", "change"), AGENTS.items())
def test_an_agent_that_makes_no_sense_is_refused(database: Database, constraint: str, change: str) -> None:
    submit(database)

    with pytest.raises(IntegrityError, match=constraint):
        execute(database, f"UPDATE agents SET {change}")


def test_an_attempt_ends_in_a_known_way(database: Database) -> None:
    doorbell = make_running(database, make_worker(database))

    with pytest.raises(IntegrityError, match="attempts_outcome_known"):
        execute(
            database,
            "INSERT INTO attempts (task_id, attempt, outcome) VALUES (:id, 1, 'vanished')",
            id=doorbell.task_id,
        )


@pytest.mark.parametrize(
    "change", ["status = 'expired', queue_state = NULL", "priority = 'urgent'", "queue_state = 'dead'"]
)
def test_there_are_no_other_statuses_and_bands(database: Database, change: str) -> None:
    submit(database)

    with pytest.raises(DataError, match="invalid input value for enum"):
        execute(database, f"UPDATE tasks SET {change}")


def test_two_living_workers_cannot_share_a_name(database: Database) -> None:
    make_worker(database, "same")

    with pytest.raises(IntegrityError, match="workers_name_alive"):
        execute(
            database,
            "INSERT INTO workers (id, name, node, pool, kinds, slots, pid, version, lease_expires_at) "
            "VALUES (:id, 'same', 'n', 'p', '{echo}', 1, 1, '0', now())",
            id=uuid.uuid4(),
        )


def test_details_and_attempts_belong_to_a_task(database: Database) -> None:
    with pytest.raises(IntegrityError, match="foreign key"):
        execute(
            database,
            "INSERT INTO task_details (task_id, title, payload) VALUES (:id, 't', '{}')",
            id=uuid.uuid4(),
        )


@pytest.mark.parametrize("name", OTHERS)
def test_what_makes_no_sense_is_refused(database: Database, name: str) -> None:
    submit(database)

    with pytest.raises(IntegrityError, match=name):
        execute(database, OTHERS[name])


def test_every_constraint_is_tried_here(database: Database) -> None:
    known = {name for (name,) in execute(database, "SELECT conname FROM pg_constraint WHERE contype = 'c'")}

    tried = {*TASKS, *DETAILS, *WORKERS, *AGENTS, *OTHERS, "attempts_outcome_known"}
    assert {name for name in known if not name.startswith(("cardinal_number", "yes_or_no"))} == tried
