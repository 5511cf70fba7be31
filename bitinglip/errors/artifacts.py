"""Errors about artifacts: the files that tasks make and take."""

from bitinglip.errors.root import BitingLipError, NotFoundError, ServerUnreachableError


class ArtifactNotFoundError(NotFoundError):
    """There is no such file, or none that may be used.

    Args:
        name: Of the artifact.
        reason: Where it was looked for, and what to do.
    """

    code = "artifact_not_found"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"artifact {name}: {reason}")


class ArtifactDiskFullError(BitingLipError):
    """There is no room for the files that a task makes.

    Args:
        place: The folder.
        free_bytes: Of its disk.
        spare_bytes: Of these, what must stay free.
    """

    code = "artifact_disk_full"

    def __init__(self, place: str, *, free_bytes: int, spare_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.spare_bytes = spare_bytes
        super().__init__(
            f"no room in {place}: {free_bytes:,} bytes are free, {spare_bytes:,} must stay so "
            "(BITINGLIP_ARTIFACT_SPARE_BYTES); keep finished tasks for fewer days (BITINGLIP_TASK_RETENTION_DAYS), "
            "or give it a larger disk"
        )


class ArtifactDamagedError(BitingLipError):
    """A file has other bytes than it should.

    Args:
        name: Of the artifact.
        reason: What differs.
    """

    code = "artifact_damaged"
    retryable = True

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"artifact {name}: {reason}")


class ArtifactStoreError(ServerUnreachableError):
    """The place where artifacts are kept cannot be used.

    Args:
        place: The folder or URL.
        reason: What happened.
    """

    code = "artifact_store_unreachable"
    retryable = True

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        super().__init__(f"artifacts at {place} cannot be used: {reason}; check BITINGLIP_ARTIFACT_URL")


class ArtifactStoreTakenError(ArtifactStoreError):
    """Another system keeps its artifacts there.

    Args:
        place: The folder or URL.
        owner_file: Which says so.
    """

    code = "artifact_store_taken"
    retryable = False

    def __init__(self, place: str, owner_file: str) -> None:
        super().__init__(
            place,
            f"the system of another database keeps its own there, and each would delete the other's; name another "
            f"place, or delete {owner_file} in it if that system is gone",
        )


class AttemptStoppedError(BitingLipError):
    """An attempt was told to stop while its files were stored."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("stopped while its files were stored")
