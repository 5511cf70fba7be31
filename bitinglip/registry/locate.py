"""A model's name to its folder."""

from pathlib import Path

from bitinglip.errors import ModelNotFoundError
from bitinglip.registry.folder import ModelFolder, inspect_folder

BUNDLED = {"demo": Path(__file__).parents[1] / "demo" / "model"}
"""Models that come with the package, by name."""


def locate_model(name: str) -> ModelFolder:
    """The folder of a bundled model, or the local folder that the name is.

    Raises:
        ModelNotFoundError: If it is neither.
        InvalidModelError: If the folder cannot be used.
    """
    path = BUNDLED.get(name) or Path(name).expanduser()
    if not path.is_dir():
        raise ModelNotFoundError(name, sorted(BUNDLED))
    return inspect_folder(path.resolve())
