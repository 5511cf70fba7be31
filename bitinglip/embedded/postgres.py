"""The private PostgreSQL: started, ready when it says so, stopped without waiting for its clients.

Only `127.0.0.1` and only with the password (scram-sha-256): no socket, no trusted user. What `kill -9` leaves,
PostgreSQL repairs itself at its next start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT

import psycopg2

from bitinglip.embedded.accounts import choose_server_account
from bitinglip.embedded.binaries import find_postgres
from bitinglip.embedded.child import Child, Program
from bitinglip.embedded.cluster import ENVIRONMENT, SUPERUSER, drop_dead_lock, is_ready, make_cluster
from bitinglip.embedded.placement import place_cluster, place_programs
from bitinglip.embedded.ports import LOOPBACK
from bitinglip.errors import ConfigurationError

DATABASE = "bitinglip"
READY_SECONDS = 120
OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    # Short statements by the thousand: compiling one costs more than running it.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
# Commits still reach the kernel at once: they survive a kill -9 of every process, not the machine's end.
FORGETFUL_OPTIONS = {"fsync": "off", "full_page_writes": "off"}


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """One database server.

    Attributes:
        data_dir: Holds the cluster, or a link to it.
        log_folder: Takes `postgres.log` and `initdb.log`.
        password: Of the superuser `bitinglip`.
        fsync: False gives up the data when the machine crashes: for tests.
        extra_options: Of `postgresql.conf`; they win over ours.
    """

    data_dir: Path
    log_folder: Path
    password: str
    fsync: bool = True
    extra_options: Mapping[str, str] = field(default_factory=dict)

    def make_url(self, port: int) -> str:
        """Where clients find the database. Holds the password: never log it."""
        return f"postgresql+psycopg2://{SUPERUSER}:{self.password}@{LOOPBACK}:{port}/{DATABASE}"

    def make_program(self, port: int) -> Program:
        """The server on that port; its data folder is made where there is none.

        Raises:
            ConfigurationError: If PostgreSQL is not installed, or cannot be run here.
            ChildStartError: If the data folder cannot be made.
        """
        programs = find_postgres()
        account = choose_server_account()
        cluster = place_cluster(self.data_dir, programs.major, account)
        folder = place_programs(programs, account)
        if not cluster.exists():
            make_cluster(
                cluster,
                initdb=folder / "initdb",
                major=programs.major,
                account=account,
                password=self.password,
                log_file=self.log_folder / "initdb.log",
                fsync=self.fsync,
            )
        options = OPTIONS | ({} if self.fsync else FORGETFUL_OPTIONS) | {"port": str(port)} | dict(self.extra_options)
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            argv=(str(folder / "postgres"), "-D", str(cluster), *settings),
            log_file=self.log_folder / "postgres.log",
            env=ENVIRONMENT,
            folder=Path("/"),
            account=account,
            # Its fast shutdown: open clients are sent away, and the data folder is left clean.
            stop_signal=SIGINT,
            stop_seconds=30,
            prepare=lambda last: drop_dead_lock(cluster, last),
            wait_ready=lambda child: self._wait_ready(child, cluster, port),
        )

    def _wait_ready(self, child: Child, cluster: Path, port: int) -> None:
        child.wait_until(lambda: is_ready(cluster, child.pid), within_seconds=READY_SECONDS)
        try:
            self._make_database(port)
        except psycopg2.OperationalError as exc:
            raise ConfigurationError(
                f"the database in {cluster} refuses the password in {self.data_dir / 'postgres.password'}: "
                f"{str(exc).strip()}; restore that file, or name another --data-dir"
            ) from exc

    def _make_database(self, port: int) -> None:
        connection = self._connect(port, "postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
            if cursor.rowcount == 0:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        connection.close()

    def _connect(self, port: int, database: str) -> "psycopg2.extensions.connection":
        return psycopg2.connect(
            host=LOOPBACK, port=port, user=SUPERUSER, password=self.password, dbname=database, sslmode="disable"
        )
