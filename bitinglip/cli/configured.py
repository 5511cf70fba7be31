"""A system on servers that others run: only our own processes are children of this one."""

from pathlib import Path

from bitinglip.embedded import EmbeddedServers
from bitinglip.settings import ServerUrls


class ConfiguredServers(EmbeddedServers):
    """`EmbeddedServers` that starts no server: the URLs are given.

    Args:
        data_dir: Takes logs and passwords.
        urls: Of the servers that run.
    """

    def __init__(self, data_dir: Path, urls: ServerUrls) -> None:
        super().__init__(data_dir)
        self._given = urls

    def _start_postgres(self) -> str:
        return self._given.database_url

    def _start_valkey(self) -> str:
        return self._given.redis_url
