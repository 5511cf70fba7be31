"""What huggingface_hub raises, and what the hub answers, as errors of ours with what to do about them.

Invariant: no token and no signed address gets into a message. Only the hub's own address, names and numbers do.
"""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    OIDCError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from bitinglip.domain.models import ModelName
from bitinglip.errors import BitingLipError, ConfigurationError, GatedModelError, HubNotFoundError, HubUnreachableError

_UNAUTHORISED = 401
_BUSY_STATUSES = {408, 425, 429}
_SERVER_ERRORS = 500


@contextlib.contextmanager
def translate_errors(model: ModelName, address: str, *, file: str | None = None, has_token: bool) -> Iterator[None]:
    """Have whatever the hub does wrong raise an error of ours.

    Args:
        model: What is asked for.
        address: Of the hub, for people.
        file: Which of its files is asked for.
        has_token: Whether a token is sent.

    Raises:
        HubNotFoundError: If the hub has no such model, revision or file, or does not show it.
        GatedModelError: If its owners have not let this token's owner in.
        ConfigurationError: If the token is none.
        HubUnreachableError: If the hub does not answer, or not as a hub; another try may find it well.
    """
    try:
        yield
    except HfHubHTTPError as exc:
        raise _translate_status(exc, model, address, file=file, has_token=has_token) from exc
    except OfflineModeIsEnabled as exc:
        reason = "HF_HUB_OFFLINE says to ask it nothing; unset it to fetch models"
        raise HubUnreachableError(address, reason) from exc
    except OIDCError as exc:
        raise ConfigurationError(f"HF_OIDC_RESOURCE: no token could be had by it: {exc}") from exc
    except httpx2.TimeoutException as exc:
        raise HubUnreachableError(address, f"no answer in time ({type(exc).__name__})") from exc
    except (httpx2.RequestError, httpx2.InvalidURL) as exc:
        raise HubUnreachableError(address, f"{type(exc).__name__}: {exc}") from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        # A proxy's page of welcome, as often as not.
        reason = f"its answer is no description of a model ({type(exc).__name__})"
        raise HubUnreachableError(address, reason) from exc


def _translate_status(
    exc: HfHubHTTPError, model: ModelName, address: str, *, file: str | None, has_token: bool
) -> BitingLipError:
    status = exc.response.status_code
    if status in _BUSY_STATUSES or status >= _SERVER_ERRORS:
        reason = f"it answers {status} {exc.response.reason_phrase}"
        return HubUnreachableError(address, reason, retry_after_seconds=find_retry_after(exc.response))
    if _is_elsewhere(exc.response):
        # Where the hub keeps its bytes nobody knows of tokens: an address that is refused there has run out.
        host = exc.response.url.host
        return HubUnreachableError(address, f"the files' server {host}, to which it points, answers {status}")
    if isinstance(exc, GatedRepoError):
        return GatedModelError(model.repo, f"{address}/{model.repo}", has_token=has_token)
    if status == _UNAUTHORISED and has_token and not isinstance(exc, RepositoryNotFoundError):
        remedy = "set one that it knows, or none for public models"
        return ConfigurationError(f"HF_TOKEN: the hub at {address} does not know this token; {remedy}")
    return HubNotFoundError(str(model), _explain_absence(exc, model, address, file=file, has_token=has_token))


def _explain_absence(exc: HfHubHTTPError, model: ModelName, address: str, *, file: str | None, has_token: bool) -> str:
    match exc:
        case RepositoryNotFoundError():
            token = "the one in HF_TOKEN may not" if has_token else "set HF_TOKEN for the workers"
            remedy = f"check the name; if it is private, a token that may read it is needed: {token}"
            return f"the hub at {address} has no such model; {remedy}"
        case RevisionNotFoundError():
            remedy = f"write one of its branches, tags or commits, as listed at {address}/{model.repo}"
            return f"it has no revision {model.revision!r}; {remedy}"
        case RemoteEntryNotFoundError():
            return f"the hub at {address} has no file {file!r} of it at commit {model.revision}"
        case DisabledRepoError():
            return f"the hub at {address} has closed it; choose another model"
    return f"the hub at {address} answers {exc.response.status_code}; see {address}/{model.repo}"


def find_retry_after(response: httpx2.Response) -> float | None:
    """The seconds that a server asks to wait before the next request; None if it does not say."""
    written = response.headers.get("retry-after", "").strip()
    if written.isdecimal():
        return float(written)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def show_address(endpoint: str) -> str:
    """A hub's address without the password that may be in it."""
    parts = urlsplit(endpoint)
    return endpoint if parts.username is None else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_elsewhere(response: httpx2.Response) -> bool:
    return bool(response.history) and response.url.origin != response.history[0].url.origin
