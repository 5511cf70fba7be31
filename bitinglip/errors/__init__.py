"""Every error that BitingLip raises on purpose, and what to do about it.

    BitingLipError
    ├── ConfigurationError          a setting or pools.toml is wrong
    ├── InvalidRequestError         a field of a request is wrong
    │   └── InvalidModelError       a model cannot be used: no safetensors, custom code, a damaged file
    │       └── AlteredFileError    (registry/hub/selection.py) a file was read with other bytes than its own
    ├── NotFoundError
    │   ├── AgentNotFoundError
    │   ├── TaskNotFoundError
    │   ├── ArtifactNotFoundError   there is no such file, or none that may be used
    │   ├── ModelNotFoundError
    │   ├── HubNotFoundError        the hub has no such model, revision or file
    │   └── WorkerNotFoundError
    ├── ModelExistsError            a model of that name is registered already
    ├── ModelInUseError             a model cannot be removed while it is used
    ├── GatedModelError             the hub gives the model to those only whom its owners let in
    ├── ModelDamagedError           bytes differ from the manifest, again and again
    ├── DiskFullError               a node has no room for a model
    ├── ArtifactDiskFullError       there is no room for the files that a task makes
    ├── ArtifactDamagedError        a file has other bytes than it should
    ├── AttemptStoppedError         an attempt was told to stop while its files were stored
    ├── DownloadStoppedError        a download was told to stop
    ├── ServerUnreachableError
    │   ├── DatabaseUnreachableError
    │   ├── RedisUnreachableError
    │   ├── HubUnreachableError     the hub does not answer, or too slowly, or has enough for now
    │   ├── ArtifactStoreError      the place where artifacts are kept cannot be used
    │   │   └── ArtifactStoreTakenError  another system keeps its artifacts there
    │   ├── SystemNotRunningError
    │   └── ChildStartError         (embedded/child.py) a server or worker did not come up
    ├── SchemaVersionError          the database is older or newer than this code
    ├── LimitExceededError          refused: the agent or channel has too much waiting, or asks too urgently
    ├── InfeasibleError             refused: no worker that is registered could ever do it
    ├── ConflictError               the task's state does not allow it; nothing was changed
    │   └── LeaseLostError          another one took the task meanwhile
    ├── TaskEndedError              the task has no result: it failed or was cancelled
    ├── ResultTimeoutError          the task goes on; the caller stopped waiting
    └── EngineError
        ├── ModelTooLargeError      a model needs more memory than an engine may use
        ├── GpuUnreadableError      (worker/hardware.py) the driver does not say what a GPU's memory holds
        └── EngineBrokenError       the engine cannot go on; its process must end

An error carries data and builds its message from it: what is wrong, which value, and the remedy. A request's errors
cross process borders as `(code, message, retryable)`, never as pickled exceptions.
"""

from bitinglip.errors.artifacts import (
    ArtifactDamagedError,
    ArtifactDiskFullError,
    ArtifactNotFoundError,
    ArtifactStoreError,
    ArtifactStoreTakenError,
    AttemptStoppedError,
)
from bitinglip.errors.models import (
    DiskFullError,
    DownloadStoppedError,
    GatedModelError,
    HubNotFoundError,
    HubUnreachableError,
    InvalidModelError,
    ModelDamagedError,
    ModelExistsError,
    ModelInUseError,
    ModelNotFoundError,
    ModelTooLargeError,
)
from bitinglip.errors.root import (
    BitingLipError,
    ConfigurationError,
    EngineError,
    InvalidRequestError,
    NotFoundError,
    ServerUnreachableError,
)
from bitinglip.errors.servers import (
    DatabaseUnreachableError,
    EngineBrokenError,
    RedisUnreachableError,
    SchemaVersionError,
    SystemNotRunningError,
)
from bitinglip.errors.tasks import (
    AgentNotFoundError,
    ConflictError,
    InfeasibleError,
    LeaseLostError,
    LimitExceededError,
    ResultTimeoutError,
    TaskEndedError,
    TaskNotFoundError,
    WorkerNotFoundError,
)

__all__ = [
    "AgentNotFoundError",
    "ArtifactDamagedError",
    "ArtifactDiskFullError",
    "ArtifactNotFoundError",
    "ArtifactStoreError",
    "ArtifactStoreTakenError",
    "AttemptStoppedError",
    "BitingLipError",
    "ConfigurationError",
    "ConflictError",
    "DatabaseUnreachableError",
    "DiskFullError",
    "DownloadStoppedError",
    "EngineBrokenError",
    "EngineError",
    "GatedModelError",
    "HubNotFoundError",
    "HubUnreachableError",
    "InfeasibleError",
    "InvalidModelError",
    "InvalidRequestError",
    "LeaseLostError",
    "LimitExceededError",
    "ModelDamagedError",
    "ModelExistsError",
    "ModelInUseError",
    "ModelNotFoundError",
    "ModelTooLargeError",
    "NotFoundError",
    "RedisUnreachableError",
    "ResultTimeoutError",
    "SchemaVersionError",
    "ServerUnreachableError",
    "SystemNotRunningError",
    "TaskEndedError",
    "TaskNotFoundError",
    "WorkerNotFoundError",
]
