"""Which artifacts are somebody's. One statement a function."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Claim:
    """Which files of a task are somebody's.

    Attributes:
        open_attempt: Whose files may still be named; None: the task has ended.
        names: That its record names.
        is_old: Whether it ended before the time that was asked about.
    """

    open_attempt: int | None
    names: frozenset[str]
    is_old: bool


_NAMES = "ARRAY(SELECT jsonb_path_query(d.result, '$.*[*].artifact') #>> '{}')"

_CLAIMS = text(f"""
SELECT t.id, CASE WHEN t.finished_at IS NULL THEN t.attempt END AS open_attempt, {_NAMES} AS names,
       coalesce(t.finished_at < now() - make_interval(secs => :seconds), false) AS is_old
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")


def find_claims(connection: Connection, task_ids: Sequence[uuid.UUID], *, old_seconds: float) -> dict[uuid.UUID, Claim]:
    """What each task claims of its files, by its id; those that are gone claim none.

    Args:
        connection: Where.
        task_ids: Which.
        old_seconds: What ended so long ago is old.
    """
    rows = connection.execute(_CLAIMS, {"ids": [str(task_id) for task_id in task_ids], "seconds": old_seconds})
    return {row.id: Claim(row.open_attempt, frozenset(row.names), row.is_old) for row in rows}


_NAMED = text(f"SELECT unnest({_NAMES}) FROM task_details AS d WHERE d.task_id = ANY(CAST(:ids AS uuid[]))")


def list_named(connection: Connection, task_ids: Sequence[uuid.UUID]) -> set[str]:
    """The artifacts that the records of tasks name."""
    return set(connection.scalars(_NAMED, {"ids": [str(task_id) for task_id in task_ids]}))


_INPUTS = text("""
SELECT DISTINCT d.payload ->> :field AS name
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.type = :type AND t.status IN ('pending', 'in_progress') AND d.payload ->> :field IS NOT NULL
""")


def list_inputs(connection: Connection, type_: str, field: str) -> set[str]:
    """The artifacts that open tasks of a type name in a field of their payload."""
    return set(connection.scalars(_INPUTS, {"type": type_, "field": field}))


_RECORDED = text(f"""
SELECT t.id, t.seq, {_NAMES} AS names
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.seq > :after AND t.status = 'completed' AND t.type = ANY(CAST(:types AS text[]))
AND t.finished_at >= now() - make_interval(secs => :seconds)
ORDER BY t.seq LIMIT :limit
""")


def list_recorded(
    connection: Connection, types: Sequence[str], *, old_seconds: float, after_seq: int, limit: int
) -> list[tuple[int, uuid.UUID, list[str]]]:
    """The artifacts that completed tasks name, oldest first: seq, id and names of some of them after a seq.

    Args:
        connection: Where.
        types: Of tasks.
        old_seconds: What ended so long ago is left out.
        after_seq: The last one that is known.
        limit: At most so many.
    """
    values = {"types": list(types), "seconds": old_seconds, "after": after_seq, "limit": limit}
    return [(row.seq, row.id, list(row.names)) for row in connection.execute(_RECORDED, values)]
