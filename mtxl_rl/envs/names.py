"""Names that were mistyped: the known ones that are most similar, and the error about them."""

import difflib
from collections.abc import Collection, Iterable


def nearest_names(name: str, known: Iterable[str], *, count: int | None = None) -> list[str]:
    """Return the `count` known names most similar to `name`, or all of them, best first."""

    def similarity(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted(known, key=similarity, reverse=True)[:count]


def check_choice(option: str, value: str, legal: Collection[str], *, hint: str = "") -> None:
    """Raise a ValueError if an option's value is not legal.

    The message lists the legal values, the most similar first, and ends with `hint`.
    """
    if value not in legal:
        ranked = ", ".join(nearest_names(str(value), legal))
        raise ValueError(f"{option}={value} is unknown; choose one of {ranked}{hint}")
