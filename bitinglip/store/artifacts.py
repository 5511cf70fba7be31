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
    """

    open_attempt: int | None
    names: frozenset[str]


_CLAIMS = text("""
SELECT t.id, CASE WHEN t.finished_at IS NULL THEN t.attempt END AS open_attempt,
       ARRAY(SELECT jsonb_path_query(d.result, '$.*[*].artifact') #>> '{}') AS names
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")


def find_claims(connection: Connection, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Claim]:
    """What each task claims of its files, by its id; those that are gone claim none."""
    rows = connection.execute(_CLAIMS, {"ids": [str(task_id) for task_id in task_ids]})
    return {row.id: Claim(row.open_attempt, frozenset(row.names)) for row in rows}


_INPUTS = text("""
SELECT DISTINCT d.payload ->> :field AS name
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.type = :type AND t.finished_at IS NULL AND d.payload ->> :field IS NOT NULL
""")


def list_inputs(connection: Connection, type_: str, field: str) -> set[str]:
    """The artifacts that open tasks of a type name in a field of their payload."""
    return set(connection.scalars(_INPUTS, {"type": type_, "field": field}))


_RECORDED = text("""
SELECT t.id, t.seq, ARRAY(SELECT jsonb_path_query(d.result, '$.*[*].artifact') #>> '{}') AS names
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
WHERE t.seq > :after AND t.status = 'completed' AND t.type = ANY(CAST(:types AS text[]))
ORDER BY t.seq LIMIT :limit
""")


def list_recorded(
    connection: Connection, types: Sequence[str], *, after_seq: int, limit: int
) -> list[tuple[int, uuid.UUID, list[str]]]:
    """The artifacts that completed tasks name, oldest first: seq, id and names of up to `limit` tasks after a seq."""
    rows = connection.execute(_RECORDED, {"types": list(types), "after": after_seq, "limit": limit})
    return [(row.seq, row.id, list(row.names)) for row in rows]
