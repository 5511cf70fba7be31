"""A model that a task needs and no node has is on its way before the task is recorded; one download serves everybody.

    text task for org/name ─► here? ─► recorded as it is
                                └► no ─► a download that waits or runs? ─► recorded, blocked by that one
                                           └► no ─► may a worker for it `pull` it? ─► recorded, blocked by a new one

A submission of a download finds the one that waits or runs in the same way, whoever asked for that one: fifty agents
that ask for a model are given the id of one task. Anyone may depend on a download.

Decision: a download that nobody asked for by name is `SYSTEM_AGENT`'s, with the priority of the task that needs it.
Were it the submitter's, a limit of that agent would hold up all the others that wait for the model.

Invariant: of the downloads of a model that were submitted, at most one waits or runs: a submission that may begin one
has the submissions of `SYSTEM_AGENT` wait for it, and so all others like it. (A retry of one that had failed may run
beside a later one; it waits for that one's files, and finds them whole.)
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from bitinglip.domain.catalogue import DOWNLOAD
from bitinglip.domain.models import ModelName, ModelSource
from bitinglip.domain.payloads import DownloadPayload
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.lifecycle.fleet import SYSTEM_AGENT, FleetPicture
from bitinglip.settings import MAX_TTL_SECONDS
from bitinglip.store.entries import ModelRecord, insert_entry, set_download_task
from bitinglip.store.fleet import ModelPlace, list_places
from bitinglip.store.submissions import find_keyed


@dataclass(slots=True)
class Arrangement:
    """What to record of a batch.

    Attributes:
        requests: With the downloads that they need, and without those that are recorded already.
        joined: By the id of each of the latter, the task that does it.
        begun: The downloads among the requests, by the name of the model.
    """

    requests: list[TaskRequest] = field(default_factory=list)
    joined: dict[uuid.UUID, uuid.UUID] = field(default_factory=dict)
    begun: dict[str, uuid.UUID] = field(default_factory=dict)


def list_models_to_bring(batch: Sequence[TaskRequest], picture: FleetPicture) -> set[str]:
    """The models that a batch asks to be fetched, or needs and would not find."""
    asked = {str(request.payload.name) for request in batch if isinstance(request.payload, DownloadPayload)}
    return asked | {request.model for request in batch if request.model and picture.lacks(request.type, request.model)}


def arrange_downloads(
    connection: Connection, batch: Sequence[TaskRequest], models: Collection[str], picture: FleetPicture
) -> Arrangement:
    """Have each of the models on its way, as far as that is allowed. What is not depends on nothing, and fails alone.

    Args:
        connection: In a transaction for which the submissions of `SYSTEM_AGENT` wait.
        batch: In the order of submission.
        models: From `list_models_to_bring`.
        picture: By which the batch is feasible.
    """
    places = list_places(connection, models)
    live = {name: place.download_id for name, place in places.items() if place.download_id is not None}
    recorded = _find_recorded(connection, batch)
    arranged = Arrangement()
    for request in batch:
        if (request.agent_id, request.idempotency_key) in recorded:
            arranged.requests.append(_depend_on(request, [], arranged.joined))
        elif isinstance(request.payload, DownloadPayload):
            _join_or_begin(arranged, live, str(request.payload.name), request)
        else:
            lacking = _find_lacking(request, places, picture)
            if lacking and lacking not in live and picture.may_pull(request.type, lacking, request.agent_id):
                _join_or_begin(arranged, live, lacking, _make_download(lacking, request))
            parents = [live[lacking]] if lacking in live else []
            arranged.requests.append(_depend_on(request, parents, arranged.joined))
    return arranged


def note_downloads(connection: Connection, begun: Mapping[str, uuid.UUID]) -> None:
    """Register the models that are to be fetched, and by which tasks. In one order for all: each locks a row."""
    for name in sorted(begun):
        parsed = ModelName.parse(name)
        insert_entry(connection, ModelRecord(name, ModelSource.HUB, repo=parsed.repo, revision=parsed.revision))
        set_download_task(connection, name, begun[name])


def _find_recorded(connection: Connection, batch: Sequence[TaskRequest]) -> set[tuple[str, str | None]]:
    keys = [(request.agent_id, request.idempotency_key) for request in batch if request.idempotency_key]
    return {(row.agent_id, row.idempotency_key) for row in find_keyed(connection, keys)} if keys else set()


def _find_lacking(request: TaskRequest, places: Mapping[str, ModelPlace], picture: FleetPicture) -> str:
    """The model that a task would wait for; empty: none. The places are as they are now, the picture may be older."""
    if request.model is None or not picture.lacks(request.type, request.model):
        return ""
    place = places.get(request.model)
    return "" if place is not None and place.is_stored else request.model


def _join_or_begin(arranged: Arrangement, live: dict[str, uuid.UUID], name: str, download: TaskRequest) -> None:
    if live.setdefault(name, download.id) == download.id:
        arranged.requests.append(_depend_on(download, [], arranged.joined))
        arranged.begun[name] = download.id
    else:
        arranged.joined[download.id] = live[name]


def _make_download(model: str, needed_by: TaskRequest) -> TaskRequest:
    # However many wait before it: those that it keeps waiting do not expire meanwhile, either.
    return make_request(
        DOWNLOAD.name,
        {"model": model},
        agent_id=SYSTEM_AGENT,
        priority=needed_by.priority,
        ttl=MAX_TTL_SECONDS,
    )


def _depend_on(
    request: TaskRequest, parents: Sequence[uuid.UUID], joined: Mapping[uuid.UUID, uuid.UUID]
) -> TaskRequest:
    """The request as a child of these as well, and of what does the downloads that it depends on."""
    named = [*(joined.get(parent, parent) for parent in request.depends_on), *parents]
    return request if named == request.depends_on else request.model_copy(update={"depends_on": named})
