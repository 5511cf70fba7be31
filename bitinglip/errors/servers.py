"""Errors about what BitingLip runs on: its servers, their schema, its engines."""

from bitinglip.errors.root import BitingLipError, EngineError, ServerUnreachableError


class DatabaseUnreachableError(ServerUnreachableError):
    """PostgreSQL does not answer or refuses the login."""

    code = "database_unreachable"

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(
            f"PostgreSQL at {address} cannot be used: {reason}; check BITINGLIP_DATABASE_URL and that the server runs"
        )


class RedisUnreachableError(ServerUnreachableError):
    """Redis does not answer or refuses the login."""

    code = "redis_unreachable"

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(
            f"Redis at {address} cannot be used: {reason}; check BITINGLIP_REDIS_URL and that the server runs"
        )


class SystemNotRunningError(ServerUnreachableError):
    """No URLs are configured and no embedded system runs."""

    code = "system_not_running"

    def __init__(self, data_dir: object) -> None:
        super().__init__(
            f"no system runs in {data_dir}; start one with 'bitinglip up', "
            "or set BITINGLIP_DATABASE_URL and BITINGLIP_REDIS_URL"
        )


class SchemaVersionError(BitingLipError):
    """The database's schema is not the one this code was written for."""

    code = "schema_version"
    exit_code = 5

    def __init__(self, found: str | None, expected: str, remedy: str) -> None:
        self.found = found
        self.expected = expected
        super().__init__(f"the database is at revision {found or 'none'}, this code needs {expected}; {remedy}")


class EngineBrokenError(EngineError):
    """The engine cannot go on (a poisoned CUDA context); its process must end."""

    code = "engine_broken"
