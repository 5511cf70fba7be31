"""Serve folders until SIGINT: `python -m tests.hub [NAME=]FOLDER... [--port N] [--slow BYTES_PER_SECOND]`."""

import argparse
import signal
import sys
import threading
from pathlib import Path

from tests.hub.server import LocalHub


def main() -> None:
    """Serve each folder as `local/<its name>`, or as the name before its `=`; the endpoint's line is on stdout."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="Serve folders as a model hub does.")
    parser.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help="served as local/<folder name>, or NAME")
    parser.add_argument("--port", type=int, default=0, help="of the API; any free one without it")
    parser.add_argument("--slow", type=float, metavar="BYTES_PER_SECOND", help="no reply is faster")
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with LocalHub(port=options.port, bytes_per_second=options.slow) as hub:
        for argument in options.folders:
            name, folder = parse_folder(argument, parser)
            sys.stderr.write(f"{name} {hub.add_repo(name, folder)} {folder}\n")
        sys.stdout.write(f"HF_ENDPOINT={hub.url}\n")
        sys.stdout.flush()
        stopped.wait()


def parse_folder(argument: str, parser: argparse.ArgumentParser) -> tuple[str, Path]:
    """A repository's name and its folder."""
    name, _, path = argument.rpartition("=")
    folder = Path(path).resolve()
    if not folder.is_dir():
        parser.error(f"{path} is no folder; name one, as FOLDER or as NAME=FOLDER")
    if name and name.count("/") != 1:
        parser.error(f"{name} is no repository's name; name it as ORG/NAME")
    return name or f"local/{folder.name}", folder


if __name__ == "__main__":
    main()
