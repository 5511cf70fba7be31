"""Connections that die, are refused or are never there give one clear error without the password."""

import time

import pytest

from bitinglip.client import Client
from bitinglip.errors import ConfigurationError, DatabaseUnreachableError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.factories import execute, submit


def test_a_wrong_password_is_named_without_being_shown(urls: ServerUrls) -> None:
    user, _, place = urls.database_url.partition("://")[2].partition("@")
    wrong = f"postgresql://{user.partition(':')[0]}:hunter2@{place}"

    with pytest.raises(DatabaseUnreachableError) as caught:
        Client(wrong, urls.redis_url)

    assert "password authentication failed" in str(caught.value)
    assert "BITINGLIP_DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(urls: ServerUrls) -> None:
    with pytest.raises(
        DatabaseUnreachableError, match=r"127.0.0.1:1/nowhere cannot be used.*check BITINGLIP_DATABASE_URL"
    ):
        Client("postgresql://u:p@127.0.0.1:1/nowhere", urls.redis_url)


def test_a_database_that_is_not_there_is_named(urls: ServerUrls) -> None:
    with pytest.raises(DatabaseUnreachableError, match='"nowhere" does not exist'):
        Client(f"{urls.database_url.rpartition('/')[0]}/nowhere", urls.redis_url)


def test_what_is_no_url_is_refused(urls: ServerUrls) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user:password@host:5432/name"):
        Client("not a url", urls.redis_url)


def test_a_client_that_is_told_of_one_server_only_says_so(urls: ServerUrls) -> None:
    with pytest.raises(ConfigurationError, match="redis_url"):
        Client(urls.database_url)
    with pytest.raises(ConfigurationError, match="database_url"):
        Client(redis_url=urls.redis_url)


def test_submitting_goes_on_after_every_connection_was_cut(urls: ServerUrls, database: Database) -> None:
    with Client(urls.database_url, urls.redis_url) as client:
        client.submit("echo")
        cut_connections(database)

        handle = client.submit("echo")

        cut_connections(database)
        assert handle.task().seq == 2


def test_waiting_for_a_free_connection_has_an_end(urls: ServerUrls) -> None:
    database = Database(urls.database_url, connections=1)
    database.engine.pool._timeout = 0.05  # type: ignore[attr-defined]

    began = time.monotonic()
    with database.transaction(), pytest.raises(DatabaseUnreachableError, match="too slowly"):
        submit(database)

    assert time.monotonic() - began < 5
    database.close()


def cut_connections(database: Database) -> None:
    execute(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'bitinglip-client'",
    )
