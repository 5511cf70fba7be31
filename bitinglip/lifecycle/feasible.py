"""Before step 1: what no worker could ever do is refused at once, with the numbers, and does not wait in vain.

With no worker alive everything is accepted: it waits for the first. So is what a worker could have done that left a
short while ago; a queue that refuses work whenever a worker restarts would not be durable. Tasks of kinds without an
engine are done by their agents, and recurring ones have nobody to hear a refusal.

Invariant: nothing is refused by a picture of the fleet older than the submission. Accepting may rest on one that is
`FRESH_SECONDS` old, so that a submission costs no statement more.
"""

from collections.abc import Iterable, Sequence

from bitinglip.domain.payloads import DownloadPayload
from bitinglip.domain.task import TaskRequest
from bitinglip.errors import InfeasibleError
from bitinglip.lifecycle.fleet import FleetPicture, look_at_fleet
from bitinglip.store.database import Database
from bitinglip.store.submissions import find_keyed

FRESH_SECONDS = 2.0


def check_feasible(database: Database, requests: Sequence[TaskRequest]) -> FleetPicture:
    """Refuse what no worker could ever do; what an idempotency key has recorded already is left to be found.

    Returns:
        The picture of the fleet by which the rest is feasible.

    Raises:
        InfeasibleError: For the first request that is, with the numbers and the remedy.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    picture = look_at_fleet(database, max_age_seconds=FRESH_SECONDS)
    suspects = _list_obstacles(picture, requests)
    if suspects:
        picture = look_at_fleet(database, max_age_seconds=0)
        suspects = _list_obstacles(picture, [request for request, _ in suspects])
    recorded = _find_recorded(database, [request for request, _ in suspects])
    for request, obstacle in suspects:
        if (request.agent_id, request.idempotency_key) not in recorded:
            raise InfeasibleError(request.type, request.model, obstacle)
    return picture


def _list_obstacles(picture: FleetPicture, requests: Iterable[TaskRequest]) -> list[tuple[TaskRequest, str]]:
    """The requests that nobody could do, with the reason; a model that is asked for by one of them may be missing."""
    obstacles = []
    coming = set()
    for request in requests:
        obstacle = picture.find_obstacle(request.type, request.model, request.agent_id)
        if isinstance(request.payload, DownloadPayload):
            coming.add(str(request.payload.name))
        elif obstacle is None and request.model not in coming:
            obstacle = picture.find_absence(request.type, request.model, request.agent_id)
        if obstacle is not None:
            obstacles.append((request, obstacle))
    return obstacles


def _find_recorded(database: Database, requests: Iterable[TaskRequest]) -> set[tuple[str, str | None]]:
    keys = [(request.agent_id, request.idempotency_key) for request in requests if request.idempotency_key]
    if not keys:
        return set()
    with database.statement() as connection:
        return {(row.agent_id, row.idempotency_key) for row in find_keyed(connection, keys)}
