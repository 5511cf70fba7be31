"""The last due time of each entry of beat's schedule. One statement a function."""

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, text

_READ = text("""
SELECT statement_timestamp() AS now, asked.name, r.last_due_at
FROM (SELECT CAST(NULL AS text) AS name UNION ALL SELECT unnest(CAST(:names AS text[]))) AS asked
LEFT JOIN recurring AS r ON r.name = asked.name
""")


def read_marks(connection: Connection, names: Sequence[str]) -> tuple[datetime, dict[str, datetime]]:
    """PostgreSQL's time, and the last due times by name; the names that it does not know are absent."""
    rows = connection.execute(_READ, {"names": list(names)}).all()
    return rows[0].now, {row.name: row.last_due_at for row in rows if row.last_due_at is not None}


_MARK_NEW = text("""
INSERT INTO recurring (name, last_due_at) SELECT unnest(CAST(:names AS text[])), statement_timestamp()
ON CONFLICT DO NOTHING
""")


def mark_new(connection: Connection, names: Sequence[str]) -> None:
    """Let entries begin now: what was due before they were known is not theirs."""
    connection.execute(_MARK_NEW, {"names": list(names)})


_CLAIM = text("""
INSERT INTO recurring (name, last_due_at) VALUES (:name, :due)
ON CONFLICT (name) DO UPDATE SET last_due_at = :due WHERE recurring.last_due_at < :due
RETURNING name
""")


def claim_due(connection: Connection, name: str, due: datetime) -> bool:
    """Take a due time; False if it, or a later one, is taken. Another one that asks waits for our commit."""
    return connection.execute(_CLAIM, {"name": name, "due": due}).one_or_none() is not None


_NOTE = text("UPDATE recurring SET last_task_id = :task_id WHERE name = :name")


def note_task(connection: Connection, name: str, task_id: uuid.UUID) -> None:
    """Write down what the last due time became."""
    connection.execute(_NOTE, {"name": name, "task_id": task_id})
