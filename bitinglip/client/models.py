"""What a client knows of the models that tasks name: enough to refuse, when it is submitted, what is known to fail."""

import time
from dataclasses import dataclass

from bitinglip.domain.catalogue import EMBEDDING, IMAGE, TEXT
from bitinglip.domain.models import is_hub_name
from bitinglip.domain.task import TaskRequest
from bitinglip.errors import InvalidRequestError, ModelNotFoundError
from bitinglip.lifecycle.feasible import FRESH_SECONDS
from bitinglip.lifecycle.fleet import look_at_fleet
from bitinglip.registry.locate import BUNDLED, find_folder, locate_model
from bitinglip.registry.lookup import find_entry
from bitinglip.store import queries
from bitinglip.store.database import Database

KNOWN_SECONDS = 10.0
"""What was found out of a model is looked up again after so long."""

_DRAWN, _WRITTEN = {IMAGE.name}, {TEXT.name, EMBEDDING.name}


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found out of a model.

    Attributes:
        type: The kind of task that it is for; None: not known here.
        context_tokens: Prompt and answer together; None: not known here.
    """

    type: str | None
    context_tokens: int | None


class KnownModels:
    """Checks requests against their models.

    Args:
        database: Knows those that this machine does not.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[float, _Known]] = {}

    def check(self, request: TaskRequest) -> None:
        """See that a request's model could do it, as far as can be told from here.

        Raises:
            ModelNotFoundError: If nobody knows the model.
            InvalidModelError: If its folder cannot be used.
            InvalidRequestError: If it is for another kind of task, or its context is shorter than what is asked for.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        if request.model is None:
            return
        found = self._find(request.model)
        _check_type(request, found.type)
        _check_context(request, found.context_tokens)

    def _find(self, model: str) -> _Known:
        known = self._known.get(model)
        if known is not None and time.monotonic() - known[0] < KNOWN_SECONDS:
            return known[1]
        found = self._look_up(model)
        self._known[model] = (time.monotonic(), found)
        return found

    def _look_up(self, model: str) -> _Known:
        if find_folder(model) is not None:
            folder = locate_model(model)
            return _Known(folder.type, folder.context_tokens)
        if is_hub_name(model):
            # Whether it is here, or may be fetched, the submission finds out.
            place = look_at_fleet(self._database, max_age_seconds=FRESH_SECONDS).places.get(model)
            return _Known(self._find_type(model), place.context_tokens if place is not None else None)
        with self._database.transaction() as connection:
            offered = queries.list_offered_models(connection)
        if model not in offered:
            raise ModelNotFoundError(model, sorted({*BUNDLED, *offered}))
        return _Known(self._find_type(model), None)

    def _find_type(self, model: str) -> str | None:
        entry = find_entry(self._database, model)
        return entry.record.type if entry is not None else None


def _check_type(request: TaskRequest, type_: str | None) -> None:
    """Refuse text of a model that draws, and pictures of one that writes; of other types the worker knows more."""
    for asked, others in ((_DRAWN, _WRITTEN), (_WRITTEN, _DRAWN)):
        if request.type in asked and type_ in others:
            remedy = f"it is a model for {type_!r} tasks; name one for {request.type!r} tasks"
            raise InvalidRequestError("model", request.model, remedy)


def _check_context(request: TaskRequest, context_tokens: int | None) -> None:
    max_tokens = getattr(request.payload, "max_tokens", None)
    asked = "max_tokens" in request.payload.model_fields_set
    if context_tokens is not None and asked and max_tokens is not None and max_tokens >= context_tokens:
        remedy = f"model {request.model!r} takes {context_tokens:,} tokens, prompt included; ask for fewer"
        raise InvalidRequestError("max_tokens", max_tokens, remedy)
