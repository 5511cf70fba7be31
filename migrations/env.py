"""How alembic reaches the database: through the engine it is given, one upgrade at a time."""

from alembic import context
from sqlalchemy import text

from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.store.tables import tasks

ADVISORY_LOCK = 0x62697401


def run_migrations() -> None:
    """Upgrade or downgrade under a lock that every other upgrade waits for."""
    engine = context.config.attributes.get("engine")
    if engine is None:
        engine = Database(load_settings(ServerSettings).find_urls().database_url).engine
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
        context.configure(connection=connection, target_metadata=tasks.metadata, compare_server_default=False)
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


run_migrations()
