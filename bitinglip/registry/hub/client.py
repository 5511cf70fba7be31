"""What the hub says of a model, and its files, by huggingface_hub.

huggingface_hub knows the addresses, the user's token (`HF_TOKEN`, `hf auth login`), the proxies and `HF_HUB_OFFLINE`;
the bytes are read by us (`stream`), because it neither proves them nor notices that they have stopped coming.

Invariants: every call ends within a moment of its `stop`, whatever the network does. A token is sent to the hub's own
address only: the client leaves it out where it is redirected to another one.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from bitinglip.domain.models import ModelFile, ModelName, is_commit, is_file_path
from bitinglip.errors import HubUnreachableError, InvalidModelError, InvalidRequestError
from bitinglip.registry.hub.errors import show_address, translate_errors
from bitinglip.registry.hub.stream import HubStream
from bitinglip.registry.transfer.stopping import call_unless_stopped
from bitinglip.settings import ModelSettings, load_settings

CONNECT_SECONDS = 10.0
MAX_TAGS = 100
RANGE_REFUSED = 416

_TYPES = {
    "text-generation": "text",
    "text2text-generation": "text",
    "image-text-to-text": "text",
    "any-to-any": "text",
    "text-to-image": "image",
    "image-to-image": "image",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "fill-mask": "embedding",
}


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model at one commit, as the hub describes it.

    Attributes:
        name: As it was asked for.
        commit: What its revision is now.
        files: All that it has, but those of names that no model's file has.
        type: The kind of task that it looks to be for: `text`, `image`, `embedding`; None: the hub does not say.
        licence: As the hub abbreviates it.
    """

    name: ModelName
    commit: str
    files: tuple[ModelFile, ...]
    type: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] = ()


class HubSource:
    """The hub as one of the places where the files of a model at one commit come from.

    Attributes:
        name: For people: the hub's address.
    """

    def __init__(self, hub: "Hub", repo: str, commit: str, stop: threading.Event | None) -> None:
        self.name = hub.address
        self._hub = hub
        self._repo = repo
        self._commit = commit
        self._stop = stop

    def open(self, file: ModelFile, start: int) -> contextlib.AbstractContextManager[HubStream]:
        """The file from that byte on; see `Hub.open_file`."""
        return self._hub.open_file(self._repo, self._commit, file.path, start=start, stop=self._stop)


class Hub:
    """A model hub; any number of threads may ask it at once.

    Args:
        endpoint: Its address; None: as `HF_ENDPOINT` says.
        token: In place of the user's own.
        stall_seconds: Without a byte before a connection counts as dead; None: as the settings say.
    """

    def __init__(
        self, *, endpoint: str | None = None, token: str | None = None, stall_seconds: float | None = None
    ) -> None:
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        self._stall_seconds = stall_seconds or load_settings(ModelSettings).download_stall_seconds
        # As long as it takes until a connection is free: those that have one do not keep it in silence.
        self._timeout = httpx2.Timeout(self._stall_seconds, connect=CONNECT_SECONDS, pool=None)
        self.address = show_address(self._endpoint)

    def look_up(self, name: ModelName, commit: str | None = None, *, stop: threading.Event | None = None) -> HubModel:
        """A model's files at the commit that its revision is now, or at the one given.

        Raises:
            HubNotFoundError: If the hub has no such model or revision, or does not show it.
            GatedModelError: If its owners choose who sees it.
            ConfigurationError: If the user's token is none.
            HubUnreachableError: If the hub does not answer. Try again later.
            InvalidModelError: If its files' sizes or hashes are missing or contradict each other.
            DownloadStoppedError: If told to stop.
        """
        asked = ModelName(name.repo, commit or name.revision)
        return call_unless_stopped(lambda: self._look_up(name, asked), stop=stop, model=str(name))

    def read_file(
        self, repo: str, commit: str, path: str, *, max_bytes: int, stop: threading.Event | None = None
    ) -> bytes:
        """A small file's bytes, unproven.

        Raises:
            InvalidModelError: If it has more bytes than that.
            HubNotFoundError: If there is no such file.
            GatedModelError: If the model's owners choose who gets it.
            ConfigurationError: If the user's token is none.
            HubUnreachableError: If the hub does not answer. Try again later.
            DownloadStoppedError: If told to stop.
        """
        content = bytearray()
        with self.open_file(repo, commit, path, start=0, stop=stop) as stream:
            for chunk in stream.chunks():
                content += chunk
                if len(content) > max_bytes:
                    remedy = f"its {path} has more than {max_bytes:,} bytes; choose another repository of the model"
                    raise InvalidModelError("model", repo, remedy)
        return bytes(content)

    @contextlib.contextmanager
    def open_file(
        self, repo: str, commit: str, path: str, *, start: int, stop: threading.Event | None = None
    ) -> Iterator[HubStream]:
        """A file from the byte `start` on, or from wherever the server begins: see the stream's own `start`.

        Raises:
            HubNotFoundError: If there is no such file.
            GatedModelError: If the model's owners choose who gets it.
            ConfigurationError: If the user's token is none.
            HubUnreachableError: If the hub does not answer. Try again later.
            DownloadStoppedError: If told to stop; also while the stream is read.
        """
        stream = call_unless_stopped(
            lambda: self._open(ModelName(repo, commit), path, start, stop),
            stop=stop,
            model=repo,
            discard=HubStream.close,
        )
        try:
            yield stream
        finally:
            stream.close()

    def make_source(self, repo: str, commit: str, *, stop: threading.Event | None = None) -> HubSource:
        """The hub as a source of one model's files, whose connections end when told to stop."""
        return HubSource(self, repo, commit, stop)

    def _look_up(self, name: ModelName, asked: ModelName) -> HubModel:
        api = HfApi(endpoint=self._endpoint, token=self._token, library_name="bitinglip")
        with translate_errors(asked, self.address, has_token=self._has_token()):
            # It hands the limit on to httpx, which takes one for each stage as well.
            limit: Any = self._timeout
            info = api.model_info(asked.repo, revision=asked.revision, files_metadata=True, timeout=limit)
        described = _describe(name, info)
        if is_commit(asked.revision or "") and described.commit != asked.revision:
            raise HubUnreachableError(self.address, f"asked for commit {asked.revision}, it gives {described.commit}")
        return described

    def _open(self, model: ModelName, path: str, start: int, stop: threading.Event | None) -> HubStream:
        with translate_errors(model, self.address, file=path, has_token=self._has_token()):
            response = self._request(model, path, start)
            if response.status_code == RANGE_REFUSED:
                # It has fewer bytes than we have: what it has now is to be seen from the start.
                response.close()
                response = self._request(model, path, 0)
            with contextlib.ExitStack() as unless_read:
                unless_read.callback(response.close)
                hf_raise_for_status(response)
                body = HubStream(
                    response, model=model.repo, address=self.address, stall_seconds=self._stall_seconds, stop=stop
                )
                if body.start not in {0, start}:
                    raise HubUnreachableError(self.address, f"asked for byte {start} on, it sends {body.start} on")
                unless_read.pop_all()
        return body

    def _request(self, model: ModelName, path: str, start: int) -> httpx2.Response:
        url = hf_hub_url(model.repo, path, revision=model.revision, endpoint=self._endpoint)
        headers = {**self._make_headers(), "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        session = get_session()
        request = session.build_request("GET", url, headers=headers, timeout=self._timeout)
        return session.send(request, stream=True, follow_redirects=True)

    def _make_headers(self) -> Mapping[str, str]:
        return build_hf_headers(token=self._token, library_name="bitinglip")

    def _has_token(self) -> bool:
        return "authorization" in self._make_headers()


def _describe(name: ModelName, info: ModelInfo) -> HubModel:
    files = tuple(_make_file(name, sibling) for sibling in info.siblings or [] if is_file_path(sibling.rfilename))
    if not is_commit(info.sha or "") or len({file.path for file in files}) < len(files):
        raise _contradicts(name, "no commit, or one file twice")
    tags = tuple(tag for tag in info.tags or [] if isinstance(tag, str))[:MAX_TAGS]
    return HubModel(
        name=name,
        commit=str(info.sha),
        files=files,
        type=_find_type(info, {file.path for file in files}),
        licence=_find_licence(info, tags),
        tags=tags,
    )


def _make_file(name: ModelName, sibling: RepoSibling) -> ModelFile:
    path, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
    if size is None or (lfs is not None and lfs.size != size):
        raise _contradicts(name, f"no size of {path}, or two")
    try:
        if lfs is not None:
            return ModelFile(path, size, sha256=lfs.sha256)
        return ModelFile(path, size, git_sha1=sibling.blob_id)
    except (InvalidRequestError, TypeError) as exc:
        raise _contradicts(name, f"no hash of {path}") from exc


def _contradicts(name: ModelName, what: str) -> InvalidModelError:
    remedy = f"the hub gives {what}, so that its bytes could not be proven; use the hub itself and no mirror of it"
    return InvalidModelError("model", str(name), f"{remedy} (HF_ENDPOINT), or another revision")


def _find_type(info: ModelInfo, paths: AbstractSet[str]) -> str | None:
    if "model_index.json" in paths:
        return "image"
    if "modules.json" in paths:
        return "embedding"
    return _TYPES.get(info.pipeline_tag or "")


def _find_licence(info: ModelInfo, tags: Sequence[str]) -> str | None:
    tagged = (tag.removeprefix("license:") for tag in tags if tag.startswith("license:"))
    written = info.card_data.get("license") if info.card_data is not None else None
    return written if isinstance(written, str) else next(tagged, None)
