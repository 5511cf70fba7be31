"""What PostgreSQL says of itself and of who is connected. One statement a function."""

from sqlalchemy import Connection, text

_VERSION = text("SELECT current_setting('server_version')")


def get_version(connection: Connection) -> str:
    """The server's version."""
    return str(connection.scalar(_VERSION))


_LIMIT = text("""
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
""")


def get_connection_limit(connection: Connection) -> int:
    """Connections that the server gives to everybody together, superusers' reserve excepted."""
    return int(connection.scalar(_LIMIT) or 0)


_DISPATCHERS = text("""
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'bitinglip-dispatcher' AND datname = current_database()
AND state_change > now() - make_interval(secs => :seconds)
""")


def count_dispatcher_connections(connection: Connection, *, active_within_seconds: float) -> int:
    """Connections of dispatchers that asked for something lately."""
    return int(connection.scalar(_DISPATCHERS, {"seconds": active_within_seconds}) or 0)
