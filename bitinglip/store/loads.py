"""Models that could not be loaded, by worker, and the tasks that wait for them. One statement a function.

The name of the worker, not its registration: one that starts anew is on the same machine, with the same files.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.tasks import Change, read_changes

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 600.0
FORGET_SECONDS = 3_600.0
"""After so long without another one a failure says nothing any more."""

BATCH = 1_000

_RECORD = text("""
INSERT INTO load_failures AS f (model, worker_name, failures, message, retry_at)
VALUES (:model, :worker_name, 1, :message, now() + make_interval(secs => :first))
ON CONFLICT (model, worker_name) DO UPDATE SET
    failures = CASE WHEN f.failed_at < now() - make_interval(secs => :forget) THEN 1 ELSE f.failures + 1 END,
    retry_at = now() + make_interval(secs =>
        CASE WHEN f.failed_at < now() - make_interval(secs => :forget) THEN :first
        ELSE least(:longest, :first * 2 ^ least(f.failures, 30)) END),
    message = excluded.message, failed_at = now()
WHERE f.retry_at <= now()
""")


def record_load_failure(connection: Connection, *, model: str, worker_name: str, message: str) -> None:
    """Say that a worker could not load a model: it is not to try again for a while, which grows with each failure.

    Within that while nothing is recorded: tasks that were under way already tell of the same failure.
    """
    values = {
        "model": model,
        "worker_name": worker_name,
        "message": message,
        "first": FIRST_RETRY_SECONDS,
        "longest": LONGEST_RETRY_SECONDS,
        "forget": FORGET_SECONDS,
    }
    connection.execute(_RECORD, values)


_FORGET = text("DELETE FROM load_failures WHERE worker_name = :worker_name AND model = ANY(:models)")


def forget_load_failures(connection: Connection, *, worker_name: str, models: Sequence[str]) -> None:
    """Say that a worker has loaded models."""
    connection.execute(_FORGET, {"worker_name": worker_name, "models": sorted(models)})


_LIST = text("""
SELECT worker_name, failures, message FROM load_failures
WHERE model = :model AND failed_at >= now() - make_interval(secs => :forget) ORDER BY worker_name
""")


def list_load_failures(connection: Connection, model: str) -> Sequence[Row[Any]]:
    """Where a model could not be loaded of late: worker_name, failures, message."""
    return connection.execute(_LIST, {"model": model, "forget": FORGET_SECONDS}).all()


_OTHERS = text("""
SELECT w.model_bytes ? :model OR :model = ANY(w.models) AS holds
FROM workers AS w LEFT JOIN models AS m ON m.name = :model
WHERE w.state = 'ready' AND w.lease_expires_at > now() AND :type = ANY(w.kinds)
AND (w.allowed_models IS NULL OR :model = ANY(w.allowed_models))
AND NOT w.name = ANY(:failed)
AND coalesce(m.weight_bytes / greatest(1, jsonb_array_length(w.gpus)) <= w.memory_limit_bytes, true)
""")


def list_other_workers(connection: Connection, *, type_: str, model: str, failed: Sequence[str]) -> list[bool]:
    """The registered workers that could load a model and are not among those that failed: whether each holds it."""
    return list(connection.scalars(_OTHERS, {"type": type_, "model": model, "failed": list(failed)}))


_FAIL = text("""
WITH failed AS (
    UPDATE tasks SET status = 'failed', queue_state = NULL, error_code = 'model_load_failed', finished_at = now(),
                     updated_at = now()
    WHERE id IN (
        SELECT id FROM tasks WHERE queue_state = 'ready' AND type = :type AND coalesce(model, '') = :model
        LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    RETURNING id, agent_id, status, attempt, error_code, worker_id
), details AS (
    UPDATE task_details AS d SET error = jsonb_build_object(
        'code', 'model_load_failed', 'retryable', false, 'message', CAST(:message AS text))
    FROM failed AS f WHERE d.task_id = f.id
)
SELECT * FROM failed
""")


def fail_waiting(connection: Connection, *, type_: str, model: str, message: str) -> list[Change]:
    """Fail up to `BATCH` tasks that wait for a model which no worker is to load; one that others hold is left alone."""
    values = {"type": type_, "model": model, "message": message, "batch": BATCH}
    return read_changes(connection.execute(_FAIL, values))
