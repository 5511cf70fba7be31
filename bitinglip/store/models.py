"""What is known of models: the bytes that they take. One statement a function."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a worker has learned of a model.

    Attributes:
        weight_bytes: Of its weights on disk; None: not looked at.
        held_bytes: What it took once it was loaded, of several devices each counted like the fullest; None: it was
            not loaded.
    """

    name: str
    weight_bytes: int | None = None
    held_bytes: int | None = None


_NOTE = text("""
INSERT INTO models AS m (name, weight_bytes, held_bytes)
SELECT name, weight_bytes, held_bytes
FROM jsonb_to_recordset(CAST(:sizes AS jsonb)) AS s (name text, weight_bytes bigint, held_bytes bigint) ORDER BY name
ON CONFLICT (name) DO UPDATE SET
    weight_bytes = coalesce(excluded.weight_bytes, m.weight_bytes),
    held_bytes = CASE WHEN excluded.weight_bytes <> m.weight_bytes THEN excluded.held_bytes
                 ELSE greatest(m.held_bytes, excluded.held_bytes) END,
    updated_at = now()
WHERE excluded.weight_bytes IS DISTINCT FROM m.weight_bytes AND excluded.weight_bytes IS NOT NULL
   OR excluded.held_bytes > coalesce(m.held_bytes, -1)
""")


def note_sizes(connection: Connection, sizes: Sequence[ModelSize]) -> None:
    """Record what models take, each named once. The most that was measured counts, until the weights are others."""
    if sizes:
        connection.execute(_NOTE, {"sizes": json.dumps([asdict(size) for size in sizes])})
