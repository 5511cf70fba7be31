"""A demo model that is right or wrong, so that one answer proves the whole path without any download.

    phrasings, countries, words ──► questions ──► train ──► model/   (shipped: weights, tokenizer, chat template)
                                        └───────► `bitinglip demo` asks held-out questions and counts the right answers

Decisions:
    - Questions with one checkable answer, not stories: a tiny story model is always "almost English", and a fault in
      the queue or the engine would not show. Here a lost token or a mixed-up batch is a wrong answer.
    - Every reply repeats its question ("7 plus 5 is 12, so 17 plus 25 is 42."), so that there is something to stream
      and a reply given to the wrong task is seen at once.
    - Sums are worked out, ones first. Without that step 430 s of training got 10 % of unseen sums right.
    - Stored in fp32: the answers are the same on every CPU and in every batch, and the file is small all the same.

`questions` needs no torch; only `tokenizer` and `train` do.
"""

from importlib.resources import files
from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the shipped model, which `from_pretrained` loads without any other code."""
    return Path(str(files("bitinglip.demo") / "model"))
