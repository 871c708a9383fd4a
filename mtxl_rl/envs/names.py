"""Find the known names that are most similar to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], *, count: int | None = None) -> list[str]:
    """Return the `count` known names most similar to `name`, or all of them, best first."""

    def similarity(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted(known, key=similarity, reverse=True)[:count]
