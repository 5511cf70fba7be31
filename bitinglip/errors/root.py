"""What every error is, and the branches of the tree."""

from typing import ClassVar


class BitingLipError(Exception):
    """Root of the tree.

    Attributes:
        code: Stable, snake_case; stored with a failed task and printed by `--json`.
        exit_code: What the command line exits with.
        retryable: Whether the same may succeed a while later.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class ConfigurationError(BitingLipError):
    """A setting or a line of pools.toml is wrong.

    Args:
        problems: One sentence each: the name, the value, the bound or the remedy.
    """

    code = "configuration"
    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InvalidRequestError(BitingLipError):
    """A field of a request is wrong.

    Args:
        field: The field's name, as the caller wrote it.
        value: The value, shortened.
        remedy: What would be right.
    """

    code = "invalid_request"
    exit_code = 2

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {shorten(value)}: {remedy}")


class NotFoundError(BitingLipError):
    """Nothing has that name."""

    code = "not_found"
    exit_code = 3


class ServerUnreachableError(BitingLipError):
    """A server does not answer."""

    code = "server_unreachable"
    exit_code = 5


class EngineError(BitingLipError):
    """The engine could not do something; the caller's request is not to blame."""

    code = "engine_error"


def shorten(value: object, limit: int = 80) -> str:
    """The value as an error shows it: its beginning, and how long it is."""
    text = repr(value)
    if len(text) <= limit:
        return text
    length = len(value) if isinstance(value, str) else len(text)
    return f"{text[:limit]}... ({length:,} characters)"
