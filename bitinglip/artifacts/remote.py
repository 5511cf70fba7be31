"""Files at a URL, as s3fs and fsspec's other file systems write them: in S3, whole or not at all.

Weakness: what a killed process had sent of a large file stays in the bucket, under no name. A rule of the bucket's that
ends incomplete multipart uploads deletes it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import fsspec

PART_BYTES = 8 << 20
"""Sent at once, and held in memory. Of 10,000 parts at most: files of up to 80 GiB."""

CONNECT_SECONDS, READ_SECONDS = 5, 20

_REQUEST_TRIES, _BODY_TRIES = 2, 1
_PACKAGES = {"aiobotocore", "aiohttp", "botocore"}
_USER_INFO = re.compile(r"(://)[^/\s]*@")


def open_files(url: str, endpoint_url: str | None) -> tuple[Any, str]:
    """The file system of a folder or URL, and its place in there.

    Args:
        url: That fsspec knows.
        endpoint_url: Of a server that speaks S3.
    """
    files, root = fsspec.core.url_to_fs(url, **_choose_options(url, endpoint_url))
    if url.startswith("s3://"):
        # Each of s3fs's tries is several of botocore's, and each of those has a time limit of its own.
        files.retries = _BODY_TRIES
    return files, root


@contextmanager
def write_upload(files: Any, path: str) -> Iterator[BinaryIO]:
    """A file that is there when the block ends well, and is not when it does not."""
    file = files.open(path, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        # The server may be why.
        with suppress(Exception):
            # Closing it, as its collection would, keeps what there is.
            file.closed = True
            file.discard()
        raise


def write_once(files: Any, path: str, content: bytes) -> None:
    """Write a small file, unless there is one: of those who do so at once, the first one's stays.

    Where a server does not know of conditions it is the last one's.
    """
    with suppress(FileExistsError):
        files.pipe_file(path, content, mode="create")


def is_failure(exc: Exception) -> bool:
    """Whether a file system raised it, or what it speaks HTTP with."""
    # Not every file system can be written.
    return isinstance(exc, OSError | NotImplementedError) or type(exc).__module__.partition(".")[0] in _PACKAGES


def misses_bucket(exc: BaseException) -> bool:
    """Whether a file is not there because its bucket is not."""
    answer = getattr(exc.__cause__, "response", None) or {}
    return bool(answer.get("Error", {}).get("Code") == "NoSuchBucket")


def hide_credentials(text: str) -> str:
    """The text, its URLs without the user's name and password."""
    return _USER_INFO.sub(r"\1", text)


def _choose_options(url: str, endpoint_url: str | None) -> dict[str, Any]:
    if not url.startswith("s3://"):
        return {}
    return {
        "endpoint_url": endpoint_url,
        # What others write must be seen.
        "use_listings_cache": False,
        "session": _make_session(),
        "default_block_size": PART_BYTES,
        # Some servers take no others.
        "fixed_upload_size": True,
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": _REQUEST_TRIES},
        },
    }


def _make_session() -> Any:
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    # While a server is waited for that has yet to say that it wants the body, no time limit holds.
    session.unregister("before-call.s3", add_expect_header)
    return session
