"""Bring a database to this code's schema, with clear words when that cannot be."""

from alembic.util.exc import CommandError

from bitinglip.errors import ConfigurationError
from bitinglip.store import migrate
from bitinglip.store.database import Database

HEAD = "head"


def upgrade_schema(database: Database, revision: str = HEAD) -> None:
    """Run the migrations up to a revision.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away or refuses the login.
        SchemaVersionError: If the database is newer than this code.
        ConfigurationError: If there is no such revision.
    """
    # Alembic's own errors about a server that is away are a page long.
    with database.transaction():
        pass
    try:
        migrate.upgrade(database, revision)
    except CommandError as exc:
        if revision == HEAD:
            database.check_schema()
        raise ConfigurationError(f"--revision is {revision!r}: {exc}; leave it out for the newest") from exc
