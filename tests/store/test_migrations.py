"""Migrations go up, down and up again, equal the tables, and no process works on another schema than its own."""

import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from bitinglip.client import Client
from bitinglip.errors import SchemaVersionError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import SCHEMA_REVISION, Database
from bitinglip.store.migrate import check, downgrade, upgrade
from tests.conftest import System
from tests.factories import execute

COUNT_OBJECTS = """
SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'),
       (SELECT count(*) FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE n.nspname = 'public' AND t.typtype = 'e')
"""


@pytest.fixture
def empty(servers: ServerUrls) -> Iterator[Database]:
    """A database without any table."""
    admin = Database(servers.database_url)
    name = f"empty_{uuid.uuid4().hex}"
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        opened = Database(f"{servers.database_url.rpartition('/')[0]}/{name}")
        yield opened
        opened.close()
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.close()


def test_migrations_go_up_down_and_up_again(empty: Database) -> None:
    upgrade(empty)
    empty.check_schema()
    tables = execute(empty, COUNT_OBJECTS)

    downgrade(empty, "base")
    assert execute(empty, COUNT_OBJECTS) == [(0, 0)]

    upgrade(empty)
    empty.check_schema()
    assert execute(empty, COUNT_OBJECTS) == tables


def test_upgrading_what_is_up_to_date_changes_nothing(database: Database) -> None:
    upgrade(database)
    database.check_schema()


def test_the_migrations_make_the_tables_that_the_code_describes(database: Database) -> None:
    check(database)


def test_the_migrations_make_the_constraints_indexes_and_storage_that_the_code_describes(
    empty: Database, database: Database
) -> None:
    from bitinglip.store.tables import tasks

    tasks.metadata.create_all(empty.engine)
    describe = """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype = 'c' AND conrelid::regclass::text <> 'alembic_version'
        UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2, 3
    """
    defaults = """
        SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
    """

    storage = """
        SELECT relname, array(SELECT unnest(reloptions) ORDER BY 1) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL ORDER BY 1
    """

    assert execute(empty, describe) == execute(database, describe)
    assert execute(empty, storage) == execute(database, storage)
    assert execute(empty, defaults) == execute(database, defaults)


@pytest.mark.parametrize(
    ("found", "remedy"), [("0000", "bitinglip db upgrade"), ("9999", "upgrade this installation of bitinglip")]
)
def test_a_client_refuses_another_schema_and_says_what_to_run(
    urls: ServerUrls, database: Database, found: str, remedy: str
) -> None:
    execute(database, "UPDATE alembic_version SET version_num = :found", found=found)

    with pytest.raises(SchemaVersionError, match=f"revision {found}, this code needs {SCHEMA_REVISION}; .*{remedy}"):
        Client(urls.database_url, urls.redis_url)


@pytest.mark.parametrize("sql", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"])
def test_a_client_refuses_a_database_without_a_schema(urls: ServerUrls, database: Database, sql: str) -> None:
    execute(database, sql)

    with pytest.raises(SchemaVersionError, match=r"revision none.*bitinglip db upgrade"):
        Client(urls.database_url, urls.redis_url)


def test_a_dispatcher_refuses_another_schema(database: Database) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '9999'")

    ended = subprocess.run(
        [sys.executable, "-m", "bitinglip.dispatcher"], capture_output=True, text=True, timeout=30, check=False
    )

    assert ended.returncode == 5
    assert "upgrade this installation" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_refuses_another_schema(processes: System, database: Database) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '0000'")

    processes.start_worker()

    assert processes.wait("worker") == 5
    assert "bitinglip db upgrade" in processes.read_log("worker")
    assert "Traceback" not in processes.read_log("worker")
    assert execute(database, "SELECT count(*) FROM workers") == [(0,)]
