"""`bitinglip model verify | scan | pin | remove`: what is done to models on the node where it is asked; no worker."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bitinglip.cli.failures import report_failure
from bitinglip.cli.model_view import write_models
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.cli.progress import ProgressLine, format_bytes
from bitinglip.client import Client
from bitinglip.errors import (
    BitingLipError,
    ConfigurationError,
    DownloadStoppedError,
    InvalidRequestError,
    ModelDamagedError,
    ResultTimeoutError,
    TaskNotFoundError,
)
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.documents import write_entry
from bitinglip.registry.registry import ModelRegistry
from bitinglip.registry.scan import describe_bad, find_remedy
from bitinglip.registry.transfer.progress import DownloadProgress

STOP_SECONDS = 5.0
"""How long removing a model waits for its download to stop."""


@click.command(
    epilog=examples("bitinglip model verify org/name", "bitinglip model verify org/name --no-repair --json | jq .bad")
)
@click.argument("name")
@click.option("--no-repair", is_flag=True, help="Only look; what is bad stays, and is used by no engine.")
@json_option
def verify(name: str, *, no_repair: bool, as_json: bool) -> None:
    """Hash every byte of this node's copy of a model, and fetch the files anew that are missing or damaged.

    Exits with 1 if the copy is damaged and was not repaired.
    """
    with _open_registry() as (_, registry), _at_work() as work:
        found = registry.verify(
            name, repair=not no_repair, stop=work.stop, on_progress=lambda progress: work.show(name, progress)
        )
    paths = [file.path for file in found.bad]
    if as_json:
        write_json({**write_entry(found.entry), "bad": paths, "repaired": found.repaired})
    elif found.is_good:
        repaired = f", {len(paths)} of them fetched anew: {', '.join(paths)}" if found.repaired else ""
        manifest = found.entry.record.manifest
        files, size = (len(manifest.files), format_bytes(manifest.total_bytes)) if manifest else (0, "")
        click.echo(f"{found.entry.name} is whole: {files} files, {size}{repaired}")
    if not found.is_good:
        raise ModelDamagedError(found.entry.name, describe_bad(found.bad, find_remedy(found.entry.record)))


@click.command(
    epilog=examples(
        "bitinglip model scan",
        "bitinglip model scan ~/models/my-finetune",
        "bitinglip model scan --restore models.json    # from: bitinglip model list --json > models.json",
    )
)
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(file_okay=False, path_type=Path))
@click.option("--restore", metavar="FILE", help="Register first what `model list --json` wrote; `-`: stdin.")
@json_option
def scan(folders: tuple[Path, ...], restore: str | None, *, as_json: bool) -> None:
    """Register what is on this node's disk: all of huggingface_hub's cache, or just these FOLDERs, where they lie.

    Every byte is hashed; nothing is fetched. What is whole becomes available, what is not is listed with the reason,
    and copies whose files are gone are forgotten. Exits with 1 if a FOLDER was refused.
    """
    documents = None if restore is None else _read_documents(restore)
    with _open_registry() as (_, registry):
        if documents is not None:
            left = registry.restore(documents)
            say(f"{len(documents) - len(left)} registered from {restore}, {len(left)} were registered already")
        if folders:
            click.get_current_context().exit(_add_folders(registry, folders, as_json=as_json))
        with _at_work() as work:
            findings = registry.scan(stop=work.stop, on_progress=work.show)
    if as_json:
        for finding in findings:
            write_json(
                {"name": finding.name, "outcome": finding.outcome, "reason": finding.reason, "is_new": finding.is_new}
            )
        return
    write_table(["name", "outcome", "new", "reason"], [(f.name, f.outcome, f.is_new, f.reason) for f in findings])


@click.command(epilog=examples("bitinglip model pin org/name", "bitinglip model pin org/name --off"))
@click.argument("name")
@click.option("--off", is_flag=True, help="Let it leave again when room is needed.")
@json_option
def pin(name: str, *, off: bool, as_json: bool) -> None:
    """Keep a model whatever room others need, on every node."""
    with _open_registry() as (_, registry):
        entry = registry.pin(name, pinned=not off)
    if as_json:
        write_json(write_entry(entry))
    else:
        write_models([entry])


@click.command(epilog=examples("bitinglip model remove org/name", "bitinglip model remove org/name --force --json"))
@click.argument("name")
@click.option("--force", is_flag=True, help="Though tasks need it, engines hold it, or it is being fetched.")
@json_option
def remove(name: str, *, force: bool, as_json: bool) -> None:
    """Delete a model: here at once, on other nodes when they see it. The files of a local folder stay where they are.

    With --force its download is cancelled, engines that hold it keep its files until they let go of it, and copies on
    nodes that are gone are forgotten.
    """
    with _open_registry() as (client, registry):
        if force:
            _cancel_download(client, registry, name)
        removal = registry.remove(name, force=force)
    if as_json:
        document: dict[str, Any] = {"name": removal.name, "freed_bytes": removal.freed_bytes}
        write_json({**document, "waiting_nodes": list(removal.waiting_nodes)})
        return
    click.echo(f"{removal.name} removed, {format_bytes(removal.freed_bytes)} came free here")
    if removal.waiting_nodes:
        nodes = ", ".join(removal.waiting_nodes)
        say(f"{nodes} will delete it as well; what a node that is gone for good has is forgotten with --force")


@contextlib.contextmanager
def _open_registry() -> Iterator[tuple[Client, ModelRegistry]]:
    cache = ModelCache()
    try:
        with Client() as client:
            yield client, ModelRegistry(client.database, cache=cache)
    except OSError as exc:
        remedy = "let this user read and write it, or set HF_HUB_CACHE to another folder"
        raise ConfigurationError(f"the models' folder {cache.folder} cannot be used: {exc}; {remedy}") from exc


class _Work:
    """Something that takes its time: shown, and ended by Ctrl-C."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.line = ProgressLine()

    def show(self, name: str, progress: DownloadProgress) -> None:
        """Tell how far it is with a model."""
        stage = f"{name}: {progress.stage}"
        self.line.show({"stage": stage, "done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes})


@contextlib.contextmanager
def _at_work() -> Iterator[_Work]:
    """Let Ctrl-C end the block soon, though threads are at work that know nothing of signals."""
    work = _Work()
    before = signal.signal(signal.SIGINT, lambda *_: work.stop.set())
    try:
        yield work
    except DownloadStoppedError:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
        work.line.end()


def _add_folders(registry: ModelRegistry, folders: Sequence[Path], *, as_json: bool) -> int:
    """Register each; returns the worst exit code."""
    worst = 0
    for folder in folders:
        try:
            entry = registry.add_folder(folder)
        except BitingLipError as exc:
            worst = max(worst, 1, report_failure(exc, as_json=as_json))
            continue
        if as_json:
            write_json(write_entry(entry))
        else:
            click.echo(f"{entry.name} available")
    return worst


def _read_documents(path: str) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line.

    Raises:
        InvalidRequestError: If it cannot be read, or a line holds none.
    """
    try:
        with click.open_file(path, encoding="utf-8") as lines:
            documents = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as exc:
        remedy = f"cannot be read ({exc}); write it with 'bitinglip model list --json'"
        raise InvalidRequestError("--restore", path, remedy) from exc
    for document in documents:
        if not isinstance(document, dict):
            raise InvalidRequestError(
                "--restore", document, "no model; each line is one, as 'model list --json' has it"
            )
    return documents


def _cancel_download(client: Client, registry: ModelRegistry, name: str) -> None:
    """Have the task that fetches a model stop, if there is one."""
    task_id = registry.get(name).download_task_id
    if task_id is None or not client.cancel([task_id]):
        return
    say(f"task {task_id}, which fetches it, was cancelled")
    with contextlib.suppress(ResultTimeoutError, TaskNotFoundError):
        client.handle(task_id).wait(timeout=STOP_SECONDS)
