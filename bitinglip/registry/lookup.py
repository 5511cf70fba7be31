"""A name, as people write it, to what is registered under it."""

from pathlib import Path

from bitinglip.domain.models import ModelName, is_hub_name
from bitinglip.errors import ModelNotFoundError
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, list_entries


def get_entry(database: Database, name: str) -> ModelEntry:
    """What is registered under a name.

    Args:
        database: Where.
        name: As tasks name it; `@main` may be left out, and a folder may be relative.

    Raises:
        ModelNotFoundError: If nothing is. The error has the command that fetches it.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    entry = find_entry(database, name)
    if entry is None:
        with database.statement() as connection:
            known = [known.name for known in list_entries(connection)]
        raise ModelNotFoundError(name, known)
    return entry


def find_entry(database: Database, name: str) -> ModelEntry | None:
    """The same; None if nothing is.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    names = [name, _resolve(name)]
    with database.statement() as connection:
        found = {entry.name: entry for entry in list_entries(connection, names)}
    return found.get(names[0]) or found.get(names[1])


def _resolve(name: str) -> str:
    """The name under which a model would be registered, whatever the way it is written."""
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return str(folder.resolve())
    except (OSError, RuntimeError):
        # Longer than a path may be, or the home of nobody.
        return name
    return str(ModelName.parse(name)) if is_hub_name(name) else name
