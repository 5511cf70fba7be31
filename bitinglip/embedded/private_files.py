"""Small files that only we may read: passwords, ports, `running.json`.

Invariant: a reader sees a whole file or none, and no other user sees any of it, not even while it is written.
"""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write the file with mode 0600, all at once."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def keep_password(path: Path) -> str:
    """The password in the file, generated where there is none. Hexadecimal: it needs no quoting anywhere."""
    try:
        password = path.read_text().strip()
    except FileNotFoundError:
        password = ""
    if not password:
        password = secrets.token_hex(24)
        write_private(path, password)
    path.chmod(0o600)
    return password
