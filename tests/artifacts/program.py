"""A process that uses the store which the settings name, and says on stdout, in JSON, how it went.

python -m tests.artifacts.program id
python -m tests.artifacts.program put SOURCE NAME SIZE SHA256
"""

import json
import sys
from pathlib import Path
from typing import Any

from bitinglip.artifacts.store import ArtifactStore, open_artifacts
from bitinglip.errors import BitingLipError
from tests.artifacts.places import list_names


def main() -> None:
    """Do what the arguments say."""
    store = open_artifacts()
    if sys.argv[1] == "id":
        answer: dict[str, Any] = {"id": str(store.find_id())}
    else:
        answer = put(store, Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
    sys.stdout.write(json.dumps(answer))


def put(store: ArtifactStore, source: Path, name: str, size: int, sha256: str) -> dict[str, Any]:
    """Keep a file, and say what is there then and how much memory it took."""
    # Whatever is imported late is imported now.
    list_names(store)
    before = read_peak_bytes()
    try:
        store.put(source, name, size=size, sha256=sha256)
        error = None
    except BitingLipError as exc:
        error = {"code": exc.code, "message": str(exc)}
    left = sorted(str(path) for path in Path(store.place).rglob("*")) if store.is_folder else []
    return {"error": error, "left": left, "peak_bytes": read_peak_bytes() - before}


def read_peak_bytes() -> int:
    """The most memory that this process has had, without what it was before it was this program."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
