"""Errors about models: where they come from, what is wrong with them, what they need."""

from bitinglip.errors.root import (
    BitingLipError,
    EngineError,
    InvalidRequestError,
    NotFoundError,
    ServerUnreachableError,
    shorten,
)


class InvalidModelError(InvalidRequestError):
    """A model folder cannot be used: pickled weights, custom code, a damaged file."""

    code = "invalid_model"


class ModelNotFoundError(NotFoundError):
    """The model is neither a folder nor known to any worker."""

    code = "model_not_found"

    def __init__(self, model: str, known: list[str]) -> None:
        self.model = model
        names = ", ".join(known) or "none"
        remedy = f"name one of ({names}), a folder with safetensors, or fetch it: 'bitinglip model pull {model}'"
        super().__init__(f"model: {shorten(model)}: not known; {remedy}")


class HubNotFoundError(NotFoundError):
    """The hub has no such model, revision or file, or does not show it to us.

    Args:
        model: As it was asked for.
        reason: What was not found, and what would be right.
    """

    code = "model_not_found"

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {shorten(model)}: {reason}")


class ModelExistsError(BitingLipError):
    """A model of that name is registered already."""

    code = "model_exists"

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model {model!r} is registered already; see 'bitinglip model show {model}'")


class ModelInUseError(BitingLipError):
    """A model cannot be removed while it is used.

    Args:
        model: Its name.
        reason: Who uses it, and what to do.
    """

    code = "model_in_use"

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {model!r} {reason}")


class GatedModelError(BitingLipError):
    """The hub gives the model to those only whom its owners let in.

    Args:
        model: Its name.
        page: Where access is asked for.
        has_token: Whether a token was sent.
    """

    code = "gated_model"
    exit_code = 4

    def __init__(self, model: str, page: str, *, has_token: bool) -> None:
        self.model = model
        if has_token:
            remedy = f"the token in HF_TOKEN is not one of those; ask for access at {page}, or set another token"
        else:
            remedy = (
                f"ask for access at {page}, then set HF_TOKEN for the workers, or run 'hf auth login' as their user"
            )
        super().__init__(f"model {model!r} is gated, its owners choose who gets it: {remedy}")


class ModelDamagedError(BitingLipError):
    """Bytes differ from the manifest, again and again.

    Args:
        model: Its name.
        reason: Which file, what it is and should be, and what to do.
    """

    code = "model_damaged"
    retryable = True

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        super().__init__(f"model {model!r}: {reason}")


class DiskFullError(BitingLipError):
    """A node has no room for a model; nothing half is left behind.

    Args:
        model: Its name.
        needed_bytes: That are not there yet.
        free_bytes: What there is for them.
        reason: Where, and what to do.
    """

    code = "disk_full"

    def __init__(self, model: str, *, needed_bytes: int, free_bytes: int, reason: str) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(f"model {model!r} needs {needed_bytes:,} bytes more, {free_bytes:,} are free {reason}")


class DownloadStoppedError(BitingLipError):
    """A download was told to stop; the files that are whole stay."""

    code = "cancelled"

    def __init__(self, model: str) -> None:
        super().__init__(f"the download of {model!r} was stopped; the files that are whole stay")


class HubUnreachableError(ServerUnreachableError):
    """The hub does not answer, or too slowly, or has enough for now.

    Args:
        address: Of the hub.
        reason: What happened.
        retry_after_seconds: What it asks to wait; None: it does not say.
    """

    code = "hub_unreachable"
    retryable = True

    def __init__(self, address: str, reason: str, *, retry_after_seconds: float | None = None) -> None:
        self.address = address
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"the hub at {address} cannot be used: {reason}; check HF_ENDPOINT and the network")


class ModelTooLargeError(EngineError):
    """A model needs more memory than an engine may use.

    Args:
        model: Its name.
        needed_bytes: On the fullest device.
        budget_bytes: What the engine may use there.
        parts: What the needed bytes are for, where that is known.
    """

    code = "model_too_large"

    def __init__(self, model: str, *, needed_bytes: int, budget_bytes: int, parts: str = "") -> None:
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        super().__init__(
            f"model {model!r} needs {needed_bytes:,} bytes on a device{parts}, of a budget of {budget_bytes:,}; "
            "give the pool a larger memory_share or more GPUs a worker, or choose a smaller model"
        )
