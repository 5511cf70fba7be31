"""What PostgreSQL reads to answer: the plans of statements, measured."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, event

from bitinglip.store.database import Database


class UndoneError(Exception):
    """Ends a transaction without keeping anything."""


def explain(database: Database, ask: Callable[[Connection], Any]) -> list[dict[str, Any]]:
    """Every node of the plans of the statements that `ask` runs, measured; nothing it does is kept."""
    return [node for plan in explain_plans(database, ask) for node in walk(plan)]


def explain_plans(database: Database, ask: Callable[[Connection], Any]) -> list[dict[str, Any]]:
    """The top nodes of the plans of the statements that `ask` runs, measured; nothing it does is kept."""
    plans: list[dict[str, Any]] = []

    def measure(_: Any, cursor: Any, statement: str, values: Any, *__: Any) -> None:
        if statement.startswith(("PREPARE", "EXPLAIN", "SET", "ROLLBACK", "SELECT set_config")):
            return
        cursor.execute("SAVEPOINT before")
        # A statement may come after the one that locks.
        asked = statement[statement.rfind("; EXECUTE ") + 2 :] if "; EXECUTE " in statement else statement
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}", values)
        plan = cursor.fetchone()[0]
        cursor.execute("ROLLBACK TO before")
        plans.append((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])

    with suppress(UndoneError), database.transaction() as connection:
        event.listen(connection, "before_cursor_execute", measure)
        ask(connection)
        event.remove(connection, "before_cursor_execute", measure)
        raise UndoneError
    assert plans
    return plans


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def count_read(node: dict[str, Any]) -> float:
    """Rows that a node of a plan looked at, and kept or not."""
    looked_at: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return (looked_at + node.get("Rows Removed by Index Recheck", 0)) * node["Actual Loops"]
