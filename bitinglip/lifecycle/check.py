"""Does what the tables say hold together? What does not is found, and can be put right, while everybody works on."""

from bitinglip.store.consistency import RULES, Drift, find_drift, repair_drift, stop_dispatch
from bitinglip.store.database import Database
from bitinglip.store.workers import RELEASE_BATCH, release_tasks


def find_all_drift(database: Database) -> list[Drift]:
    """What is wrong, by rule; nothing for a rule that holds.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    found = []
    for rule in RULES:
        with database.statement() as connection:
            found.append(find_drift(connection, rule))
    return [drift for drift in found if drift.count]


def repair_all_drift(database: Database) -> list[Drift]:
    """Put right what is wrong, rule by rule, and return what was.

    Each in a transaction of its own, so that submitters wait for one repair at most.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. What was repaired before stays so.
    """
    found = []
    for rule in RULES:
        with database.transaction() as connection:
            stop_dispatch(connection)
            drift = find_drift(connection, rule)
            if drift.count and rule.repair:
                repair_drift(connection, rule)
            elif drift.count:
                while len(release_tasks(connection)) == RELEASE_BATCH:
                    pass
        found.append(drift)
    return [drift for drift in found if drift.count]
