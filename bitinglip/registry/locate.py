"""A model's name to its folder."""

from pathlib import Path

from bitinglip.domain.models import is_hub_name
from bitinglip.engine.folder import ModelFolder, inspect_folder
from bitinglip.errors import ModelNotFoundError

_DEMO = Path(__file__).parents[1] / "demo"
BUNDLED = {"demo": _DEMO / "model", "demo-image": _DEMO / "images" / "model"}
"""Models that come with the package, by name."""


def locate_model(name: str) -> ModelFolder:
    """The folder of a bundled model, or the local folder that the name is.

    Raises:
        ModelNotFoundError: If it is neither.
        InvalidModelError: If the folder cannot be used.
    """
    path = find_folder(name)
    if path is None:
        raise ModelNotFoundError(name, sorted(BUNDLED))
    return inspect_folder(path)


def find_folder(name: str) -> Path | None:
    """The folder that a name stands for on this machine, unread; None if it is none."""
    try:
        path = BUNDLED.get(name) or Path(name).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError):
        # Longer than a path may be, or the home of nobody.
        return None


def is_hub_model(name: str) -> bool:
    """Whether a name stands for a model of the hub: it looks like one, and is no folder of this machine."""
    return is_hub_name(name) and find_folder(name) is None


def measure_weights(name: str) -> int | None:
    """Bytes of a model's weights as its folder has them; None if this machine has none of that name."""
    folder = find_folder(name)
    try:
        if folder is None:
            return None
        # A pipeline's parts are in folders of their own.
        pattern = "*/*.safetensors" if (folder / "model_index.json").exists() else "*.safetensors"
        return sum(file.stat().st_size for file in folder.glob(pattern))
    except OSError:
        # Not ours to read, or deleted at this moment.
        return None
