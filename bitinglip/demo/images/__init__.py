"""A demo model for images that is right or wrong: "a red circle on blue" is a picture whose colours can be counted.

    scenes ──► train ──► model/   (shipped: a Stable Diffusion pipeline, small enough for a package)
       └─────► judge ──► which colours and which shape a picture shows

Decisions:
    - Six shapes, six colours, and the same six behind them, never the same twice: 180 scenes, each with one right
      answer.
    - A latent diffusion pipeline of diffusers' own classes, not a toy of ours: what draws this draws any other.
    - A shape is told by how much of its ideal outline it covers, a colour by the nearest of the six: no second model is
      asked, so that the judge cannot share the mistakes of what it judges.

`scenes` and `judge` need no torch; only `train` does.
"""

from importlib.resources import files
from pathlib import Path


def image_model_folder() -> Path:
    """Return the folder that `train` writes, which `DiffusionPipeline.from_pretrained` loads without other code."""
    return Path(str(files("bitinglip.demo.images") / "model"))
