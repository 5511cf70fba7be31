"""Private ports on the loopback address, kept from one start to the next.

They are taken below the range that outgoing connections use, so that a kept port is still free after a restart unless
another server took it.
"""

import secrets
import socket
from pathlib import Path

from bitinglip.embedded.private_files import write_private

LOOPBACK = "127.0.0.1"
FIRST_PORT = 20_000
PORTS = 12_000


def keep_port(path: Path) -> int:
    """The port in the file if it is free, else a new free one, which replaces it."""
    port = _read_port(path)
    if port is not None and is_free(port):
        return port
    port = _find_free_port()
    write_private(path, str(port))
    return port


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections that linger after a stop don't block the next start.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def accepts_connections(port: int) -> bool:
    """Whether something listens on the port now. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _read_port(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _find_free_port() -> int:
    while True:
        port = FIRST_PORT + secrets.randbelow(PORTS)
        if is_free(port):
            return port
