"""What a model is made of from now on: its commit and its files, as the hub has them at this moment."""

import threading
from functools import partial

from bitinglip.domain.models import Manifest, ModelName, ModelSource
from bitinglip.errors import HubNotFoundError, ModelDamagedError
from bitinglip.registry.hashing import is_content
from bitinglip.registry.hub.client import Hub, HubModel
from bitinglip.registry.hub.selection import choose_files
from bitinglip.registry.transfer.fetch import MAX_DAMAGED_FILES, describe_damage
from bitinglip.store.entries import ModelRecord

MAX_LISTING_BYTES = 50_000_000
"""Of a file that says which others are needed."""


def look_up_record(hub: Hub, model: ModelName, *, stop: threading.Event) -> ModelRecord:
    """What the hub says of a model, with the manifest of the files that are needed of it.

    Raises:
        HubNotFoundError: If the hub has no such model or revision, or does not show it.
        GatedModelError: If its owners choose who sees it.
        HubUnreachableError: If the hub does not answer. Try again later.
        InvalidModelError: If it cannot be used, or the hub contradicts itself.
        ModelDamagedError: If a file that says which others are needed comes with wrong bytes again and again.
        DownloadStoppedError: If told to stop.
    """
    found = hub.look_up(model, stop=stop)
    return ModelRecord(
        str(model),
        ModelSource.HUB,
        type=found.type,
        repo=model.repo,
        revision=model.revision,
        manifest=choose_files(found, partial(_read_listing, hub, found, stop)),
        licence=found.licence,
        tags=found.tags,
    )


def _read_listing(hub: Hub, found: HubModel, stop: threading.Event, path: str) -> bytes:
    """A file that says which others are needed, proven."""
    file = Manifest(found.commit, found.files).get(path)
    if file is None:
        raise HubNotFoundError(str(found.name), f"the hub at {hub.address} has no file {path} of it at this commit")
    for _ in range(MAX_DAMAGED_FILES):
        content = hub.read_file(found.name.repo, found.commit, path, max_bytes=MAX_LISTING_BYTES, stop=stop)
        if is_content(content, file):
            return content
    raise ModelDamagedError(str(found.name), describe_damage(file, hub.address))
