"""The invariants, in SQL: nothing lost, nothing recorded twice, nothing stuck.

lost             failed, cancelled, or not there although its submission was confirmed
stuck            has not ended
double_recorded  completed more than once, with another result than the right one, or after attempts that do not
                 lead there: each of them has a row, only the last one completed

and of files, see `files`: file_missing, file_damaged, file_unnamed
"""

import json
import uuid
from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from bitinglip.chaos.load import Ledger


@dataclass(frozen=True)
class Violation:
    """One task that is not as it must be.

    Attributes:
        invariant: `lost`, `stuck`, `double_recorded`, `file_missing`, `file_damaged` or `file_unnamed`.
        reason: For people.
    """

    task_id: uuid.UUID
    invariant: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What became of the tasks of a ledger.

    Attributes:
        files: That records name.
        files_swept: That no record named.
    """

    tasks: int
    completed: int
    violations: list[Violation] = field(default_factory=list)
    files: int = 0
    files_swept: int = 0

    def count(self, invariant: str) -> int:
        """How many tasks break an invariant."""
        return Counter(violation.invariant for violation in self.violations)[invariant]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is broken."""
        return not self.violations


_CHECK = text("""
WITH ledger AS (
    SELECT * FROM jsonb_to_recordset(CAST(:ledger AS jsonb)) AS l (id uuid, expected text, unsure boolean)
), history AS (
    SELECT a.task_id, count(*) AS attempts, count(*) FILTER (WHERE a.outcome = 'completed') AS completions,
           max(a.attempt) AS last,
           max(a.attempt) FILTER (WHERE a.outcome = 'completed') AS completed_at_attempt
    FROM attempts AS a JOIN ledger AS l ON l.id = a.task_id GROUP BY a.task_id
), judged AS (
    SELECT l.id, t.status::text AS status,
        CASE WHEN t.id IS NULL AND l.unsure THEN NULL
             WHEN t.id IS NULL THEN 'lost'
             WHEN t.status IN ('failed', 'cancelled') THEN 'lost'
             WHEN t.status IN ('pending', 'in_progress') THEN 'stuck'
             WHEN h.completions IS DISTINCT FROM 1 THEN 'double_recorded'
             WHEN m.made IS DISTINCT FROM l.expected THEN 'double_recorded'
             WHEN h.attempts <> t.attempt OR h.last <> t.attempt OR h.completed_at_attempt <> t.attempt
             THEN 'double_recorded'
        END AS invariant,
        CASE WHEN t.id IS NULL THEN 'it was confirmed and is not there'
             WHEN t.status IN ('failed', 'cancelled') THEN t.status || ': ' || coalesce(t.error_code, 'no reason')
             WHEN t.status IN ('pending', 'in_progress')
             THEN t.status || coalesce(', ' || t.queue_state, '') || ', attempt ' || t.attempt
             WHEN h.completions IS DISTINCT FROM 1 THEN 'completed ' || coalesce(h.completions, 0) || ' times'
             WHEN m.made IS DISTINCT FROM l.expected
             THEN 'its result is ' || coalesce(d.result::text, 'missing') || ' in place of ' || l.expected
             ELSE 'its last attempt is ' || t.attempt || ', and its history says otherwise'
        END AS reason
    FROM ledger AS l
    LEFT JOIN tasks AS t ON t.id = l.id
    LEFT JOIN task_details AS d ON d.task_id = l.id
    LEFT JOIN history AS h ON h.task_id = l.id
    CROSS JOIN LATERAL (SELECT coalesce(d.result ->> 'text', (
        SELECT string_agg(image ->> 'seed', ' ' ORDER BY place)
        FROM jsonb_array_elements(d.result -> 'images') WITH ORDINALITY AS i (image, place)
    )) AS made) AS m
)
SELECT id, status, invariant, reason FROM judged WHERE status IS NOT NULL OR invariant IS NOT NULL
""")


def check_invariants(connection: Connection, ledger: Ledger) -> Verdict:
    """Look at every task of a ledger."""
    rows = [
        {"id": str(task_id), "expected": expected, "unsure": task_id in ledger.unsure}
        for task_id, expected in ledger.expected.items()
    ]
    found = connection.execute(_CHECK, {"ledger": json.dumps(rows)}).all()
    return Verdict(
        tasks=len(found),
        completed=sum(row.status == "completed" for row in found),
        violations=[Violation(row.id, row.invariant, row.reason) for row in found if row.invariant is not None],
    )
