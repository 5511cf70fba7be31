"""The embedded servers as one thing: start both, know their URLs, stop both.

<data_dir>/                 0700; 0711 where PostgreSQL runs under another account
    lock                    held while a system runs here, by it and by its guard
    running.json            while it runs: the URLs for other terminals
    postgresql-18/          the database, or a link to it (see `placement.py`)
    valkey/                 its append-only file
    postgres.password, postgres.port, and so on for valkey and flower
    run/                    pid files of the children
    logs/
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from bitinglip.embedded.accounts import choose_server_account
from bitinglip.embedded.child import ChildStartError, Program
from bitinglip.embedded.children import ChildDeath, ProcessStack, log_death
from bitinglip.embedded.flower import USER, Flower
from bitinglip.embedded.guard import Guard
from bitinglip.embedded.lock import DataLock
from bitinglip.embedded.placement import remove_cluster
from bitinglip.embedded.ports import is_free, keep_port
from bitinglip.embedded.postgres import Postgres
from bitinglip.embedded.private_files import keep_password, write_private
from bitinglip.embedded.valkey import Valkey
from bitinglip.errors import ConfigurationError
from bitinglip.settings import RUNNING_FILE, ServerUrls

PORT_TRIES = 5


class EmbeddedServers:
    """A private PostgreSQL and Valkey, restarted when they die, gone when this process is.

    Args:
        data_dir: Keeps everything from one start to the next; made where it is missing.
        urls: Of servers that others run: none is started here, only what the caller starts on top.
        fsync: False gives up the data when the machine crashes: for tests.
        postgres_options: Of `postgresql.conf`; they win over ours.
        on_death: Called in a thread when a child ends without being asked.

    Attributes:
        stack: The servers; start what uses them on top, and it is stopped before them.
        guard: Stops them all should this process be killed.
    """

    stack: ProcessStack
    guard: Guard

    def __init__(
        self,
        data_dir: Path,
        *,
        urls: ServerUrls | None = None,
        fsync: bool = True,
        postgres_options: Mapping[str, str] | None = None,
        on_death: Callable[[ChildDeath], None] = log_death,
    ) -> None:
        self.data_dir = Path(os.path.abspath(data_dir.expanduser()))
        self.log_folder = self.data_dir / "logs"
        self._given_urls = urls
        self._fsync = fsync
        self._postgres_options = dict(postgres_options or {})
        self._on_death = on_death
        self._extra: dict[str, Any] = {}
        self._urls: ServerUrls | None = None
        self._lock: DataLock | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def urls(self) -> ServerUrls:
        """Where the servers are.

        Raises:
            ConfigurationError: If they have not been started.
        """
        if self._urls is None:
            raise ConfigurationError(f"the servers of {self.data_dir} do not run; call start() first")
        return self._urls

    def start(self) -> ServerUrls:
        """Start both and return where they are.

        Raises:
            ConfigurationError: If another process runs a system here, the folder cannot be written, or a server is
                not installed.
            ChildStartError: If a server does not come up; nothing is left running.
        """
        try:
            _open_data_dir(self.data_dir)
            self._lock = DataLock(self.data_dir)
        except OSError as exc:
            raise ConfigurationError(
                f"--data-dir is {self.data_dir}: {exc.strerror}; name a folder that this user may write"
            ) from exc
        try:
            run_folder = _make_private_folder(self.data_dir / "run")
            _make_private_folder(self.log_folder)
            self.guard = Guard(self.log_folder / "guard.log", held_fds=[self._lock.descriptor])
            self.stack = ProcessStack(run_folder, self.guard, on_death=self._on_death)
            self._urls = self._given_urls or ServerUrls(self._start_postgres(), self._start_valkey())
            self._write_running()
        except BaseException:
            self.stop()
            raise
        return self._urls

    def start_on_port(self, name: str, make_program: Callable[[int], Program]) -> int:
        """Start a program on a private port, the same as last time if it is still free, and return that port.

        Raises:
            ChildStartError: If it does not come up.
        """
        for _ in range(PORT_TRIES - 1):
            port = keep_port(self.data_dir / f"{name}.port")
            try:
                self.stack.start(make_program(port))
            except ChildStartError:
                if is_free(port):
                    raise
                # Somebody took the port after it was chosen: choose another.
                continue
            return port
        port = keep_port(self.data_dir / f"{name}.port")
        self.stack.start(make_program(port))
        return port

    def start_flower(self, *, app: str = "bitinglip", env: Mapping[str, str] | None = None) -> str:
        """Start Flower on top and return its URL; its user is `bitinglip`, its password in `flower.password`.

        Args:
            app: Celery's name for the application.
            env: Added to our environment.

        Raises:
            ChildStartError: If it does not come up.
        """
        flower = Flower(
            log_folder=self.log_folder,
            password=keep_password(self.data_dir / "flower.password"),
            redis_url=self.urls.redis_url,
            app=app,
            env=env,
        )
        url = flower.make_url(self.start_on_port("flower", flower.make_program))
        self.describe(flower_url=url, flower_user=USER)
        return url

    def describe(self, **extra: Any) -> None:
        """Add to what other terminals read in `running.json`, such as Flower's URL."""
        self._extra |= extra
        self._write_running()

    def stop(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Stop every child, the last started first. Idempotent.

        Args:
            is_hurried: Asked while waiting; once true, every child is asked twice and gets its `hurried_stop_seconds`.
        """
        if self._lock is None:
            return
        (self.data_dir / RUNNING_FILE).unlink(missing_ok=True)
        if hasattr(self, "stack"):
            self.stack.stop(is_hurried)
        if hasattr(self, "guard"):
            self.guard.close()
        self._lock.release()
        self._lock = self._urls = None

    def _start_postgres(self) -> str:
        postgres = Postgres(
            data_dir=self.data_dir,
            log_folder=self.log_folder,
            password=keep_password(self.data_dir / "postgres.password"),
            fsync=self._fsync,
            extra_options=self._postgres_options,
        )
        return postgres.make_url(self.start_on_port("postgres", postgres.make_program))

    def _start_valkey(self) -> str:
        valkey = Valkey(
            folder=self.data_dir / "valkey",
            log_folder=self.log_folder,
            password=keep_password(self.data_dir / "valkey.password"),
            fsync=self._fsync,
        )
        return valkey.make_url(self.start_on_port("valkey", valkey.make_program))

    def _write_running(self) -> None:
        running = {**self.urls._asdict(), "pid": os.getpid(), "extra": self._extra}
        write_private(self.data_dir / RUNNING_FILE, json.dumps(running, indent=2))


def remove_data(data_dir: Path) -> None:
    """Remove everything that a stopped system kept, the database outside the data folder included.

    Raises:
        ConfigurationError: If a system runs there.
    """
    if data_dir.exists():
        lock = DataLock(data_dir)
        remove_cluster(data_dir)
        shutil.rmtree(data_dir)
        lock.release()


def _open_data_dir(data_dir: Path) -> None:
    """Make the folder, or tighten it where it is ours; a folder with other people's files keeps its mode."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not any(data_dir.iterdir()) or (data_dir / "lock").exists():
        data_dir.chmod(0o700 if choose_server_account() is None else 0o711)


def _make_private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
