"""A request to its reply: routes, access, and the hub's headers and errors. No socket is known here."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from tests.hub.faults import Request
from tests.hub.repos import Commit, Repo, ServedFile

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>[^/]+)(?:/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?)?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
CDN = re.compile(r"/(?P<repo>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")

TREE_PAGE_ENTRIES = 1000
XET_TOKEN_SECONDS = 3600


@dataclass
class Reply:
    """What is to be sent: of the body, the bytes of `span`."""

    status: int
    body: bytes | Path
    span: range
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """What the client may not have or what is not there, in the hub's words."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: Commit | None = None) -> None:
        super().__init__(message)
        self.reply = refuse(status, message, code)
        if commit:
            self.reply.headers["X-Repo-Commit"] = commit.id


def refuse(status: int, message: str, code: str | None = None) -> Reply:
    """A reply of failure, as `huggingface_hub` makes its exceptions of."""
    reply = _reply_json({"error": message}, status=status)
    reply.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return reply


class Protocol:
    """The hub's side of its HTTP API.

    Args:
        repos: What it serves, by name; read at each request.
        tokens: Tokens of accounts that may read no more than anyone; the readers of a repository are known as well.
        hub_url: Where the API is.
        cdn_url: Where large files are.
    """

    def __init__(self, repos: Mapping[str, Repo], tokens: Iterable[str], hub_url: str, cdn_url: str) -> None:
        self._repos = repos
        self._tokens = frozenset(tokens)
        self._hub_url = hub_url
        self._cdn_url = cdn_url
        self.tree_page_entries = TREE_PAGE_ENTRIES

    def answer(self, request: Request) -> Reply:
        """The reply to a request of any kind."""
        try:
            match request.kind:
                case "api":
                    return self._answer_api(request)
                case "resolve":
                    return self._answer_resolve(request)
                case "cdn":
                    return self._answer_cdn(request)
                case "cas":
                    return refuse(503, "Nothing is in this storage")
        except RefusedError as refused:
            return refused.reply

    def _answer_api(self, request: Request) -> Reply:
        found = _match(API, request)
        verb, revision, path = found["verb"], unquote(found["revision"] or "main"), unquote(found["path"] or "")
        repo = self._find_repo(found["repo"], request, contents=verb in {"auth-check", "xet-read-token"})
        match verb:
            case None | "revision":
                commit = _find_commit(repo, revision)
                return _reply_json(repo.describe(commit, with_blobs="blobs" in request.query))
            case "tree":
                return self._list_tree(repo, _find_commit(repo, revision), path, request)
            case "refs":
                return _reply_json(_list_refs(repo))
            case "auth-check":
                return _reply_json({})
            case "xet-read-token":
                return self._lend_xet_token()
            case _:
                raise RefusedError(404, f"this hub has no route {request.path}")

    def _answer_resolve(self, request: Request) -> Reply:
        found = _match(RESOLVE, request)
        repo = self._find_repo(found["repo"], request, contents=True)
        commit = _find_commit(repo, unquote(found["revision"]))
        file = commit.files.get(unquote(found["path"]))
        if file is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", commit)
        reply = self._redirect(repo, file) if file.sha256 else _reply_file(file, request)
        reply.headers["X-Repo-Commit"] = commit.id
        if repo.xet and file.sha256:
            route = f"{self._hub_url}/api/models/{repo.name}/xet-read-token/{commit.id}"
            link = f'<{route}>; rel="xet-auth"'
            reply.headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": route, "Link": link}
        return reply

    def _answer_cdn(self, request: Request) -> Reply:
        found = _match(CDN, request)
        # Content by its hash: neither tokens nor branches are known here.
        commits = self._repos[found["repo"]].commits.values() if found["repo"] in self._repos else ()
        for file in (commit.files.get(unquote(found["path"])) for commit in commits):
            if file and file.sha256 == found["sha256"]:
                return _reply_file(file, request)
        raise RefusedError(404, "NoSuchKey")

    def _find_repo(self, name: str, request: Request, *, contents: bool) -> Repo:
        known = self._tokens.union(*(repo.readers for repo in self._repos.values()))
        if request.token and request.token not in known:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        repo = self._repos.get(name)
        may_read = repo is not None and request.token in repo.readers
        if repo is None or (repo.private and not may_read):
            raise RefusedError(404 if request.token else 401, "Repository not found", "RepoNotFound")
        if repo.gated and contents and not may_read:
            message = f"Access to model {name} is restricted and you are not in the authorized list"
            raise RefusedError(403 if request.token else 401, message, "GatedRepo")
        return repo

    def _list_tree(self, repo: Repo, commit: Commit, folder: str, request: Request) -> Reply:
        entries = repo.list_tree(commit, folder)
        if folder and not entries:
            raise RefusedError(404, f"{folder} does not exist on {commit.id}", "EntryNotFound", commit)
        begin = int(request.query.get("cursor", 0))
        end = begin + self.tree_page_entries
        reply = _reply_json(entries[begin:end])
        if end < len(entries):
            query = urlencode({**request.query, "cursor": end})
            reply.headers["Link"] = f'<{self._hub_url}{request.path}?{query}>; rel="next"'
        return reply

    def _redirect(self, repo: Repo, file: ServedFile) -> Reply:
        location = f"{self._cdn_url}/{repo.name}/{file.sha256}/{quote(file.path)}"
        body = f"Found. Redirecting to {location}".encode()
        headers = {
            "Location": location,
            "Content-Type": "text/plain; charset=utf-8",
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
        }
        return Reply(302, body, range(len(body)), headers)

    def _lend_xet_token(self) -> Reply:
        url, token, expires_at = f"{self._hub_url}/cas", "xet", int(time.time()) + XET_TOKEN_SECONDS
        reply = _reply_json({"casUrl": url, "accessToken": token, "exp": expires_at})
        names = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires_at)}
        reply.headers |= names
        return reply


def _match(route: re.Pattern[str], request: Request) -> re.Match[str]:
    found = route.fullmatch(request.path)
    if found is None:
        raise RefusedError(404, f"this hub has no route {request.path}")
    return found


def _find_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find_commit(revision)
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _list_refs(repo: Repo) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id} for name, commit in repo.branches.items()
    ]
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": []}


def _reply_json(value: object, *, status: int = 200) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status, body, range(len(body)), {"Content-Type": "application/json; charset=utf-8"})


def _reply_file(file: ServedFile, request: Request) -> Reply:
    headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    whole = range(file.size)
    span = _find_span(request, file)
    if span is None:
        return Reply(200, file.source, whole, headers)
    if not span:
        return Reply(416, b"", range(0), {**headers, "Content-Range": f"bytes */{file.size}"})
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    return Reply(206, file.source, span, headers)


def _find_span(request: Request, file: ServedFile) -> range | None:
    """The bytes that are asked for, empty if the file has none of them; None if it is the whole file."""
    found = RANGE.fullmatch(request.range or "")
    outdated = request.headers.get("If-Range", f'"{file.etag}"') != f'"{file.etag}"'
    if found is None or not any(found.groups()) or outdated:
        return None
    first, last = found.groups()
    if not first:
        return range(max(file.size - int(last), 0), file.size)
    return range(int(first), min(int(last) + 1, file.size) if last else file.size)
