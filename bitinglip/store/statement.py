"""A statement that each connection parses and plans once.

Planning the insert of one task took PostgreSQL longer than running it. The statements of the hot path are therefore
prepared by their first use on a connection. Weakness: a connection pooler in transaction mode loses them; the direct
or session mode that LISTEN needs anyway is fine.
"""

import re
from typing import Any

from sqlalchemy import Connection, CursorResult

REPLAN_AFTER = 500

_PARAMETER = re.compile(r"(?<!:):(\w+)")


class Statement:
    """SQL with `:name` parameters, prepared on first use.

    Args:
        name: Of the prepared statement; unique in the program.
        sql: One statement.
        **types: PostgreSQL's type of each parameter.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        numbers = {parameter: f"${number}" for number, parameter in enumerate(types, start=1)}
        body = _PARAMETER.sub(lambda match: numbers[match[1]], sql)
        arguments = ", ".join(f"CAST(%({parameter})s AS {kind})" for parameter, kind in types.items())
        self._name = name
        self._prepare = (
            f"PREPARE {name} ({', '.join(types.values())}) AS {body}" if types else f"PREPARE {name} AS {body}"
        )
        self._execute = f"EXECUTE {name} ({arguments})" if types else f"EXECUTE {name}"

    def execute(self, connection: Connection, *, before: str = "", **values: Any) -> CursorResult[Any]:
        """Run it with these values.

        Args:
            connection: Where.
            before: A statement without parameters to run first, in the same round trip and transaction.
            **values: Of the parameters.
        """
        prepared: set[str] = connection.info.setdefault("prepared", set())
        if self._name not in prepared:
            connection.exec_driver_sql(self._prepare)
            prepared.add(self._name)
        sql = f"{before}; {self._execute}" if before else self._execute
        return connection.exec_driver_sql(sql, values or None)


def age_plans(connection: Connection, changes: int) -> None:
    """Have every statement of this connection planned anew after `REPLAN_AFTER` changes to what they read.

    A plan that was made while a table was empty takes any index for as good as another, and is kept until autovacuum
    has looked at the table: a minute of rounds of 200 ms after a burst of 30,000 queues. A new plan goes by the
    table's size.
    """
    age = connection.info.get("age", 0) + changes
    if age >= REPLAN_AFTER:
        connection.exec_driver_sql("DISCARD PLANS")
        age = 0
    connection.info["age"] = age
