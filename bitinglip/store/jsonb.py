"""JSON that PostgreSQL can hold: no NUL, no half of a surrogate pair, no NaN.

What people send is checked and refused; what an engine made is made to fit, because many results are recorded in one
statement and one odd character must not fail the others.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def dump_storable(document: Any) -> str:
    """The document as JSON; a character that cannot be stored becomes U+FFFD, a number that is none becomes null."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_fit(document))
    if "\\u0000" in text or _UNSTORABLE.search(text):
        return json.dumps(_fit(document))
    return text


def make_storable(text: str) -> str:
    """The text; a character that cannot be stored becomes U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _fit(value: Any) -> Any:
    match value:
        case str():
            return make_storable(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_fit(key): _fit(item) for key, item in value.items()}
        case Sequence():
            return [_fit(item) for item in value]
        case _:
            return value
