"""The documentation avoids phrases that have a plainer equivalent."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted(ROOT.glob("docs/*.md"))]
PLAINER = {
    "goes on": "continues",
    "go on": "continue",
    "held against": "compared with",
    "at once": "immediately, or together",
    "whoever": "an agent that",
    "beside": "next to, or in addition to",
    "told": "passed, or reported",
    "as it is": "unchanged, or eager",
    "what is given": "the inputs",
    "emptied": "zeroed",
}
ALLOWED = {"docs/experiments.md"}
"""A log of past experiments, kept as it was written."""


def prose(path: Path) -> list[str]:
    """The lines of a page; code is blank."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text).splitlines()


@pytest.mark.parametrize(
    "path", [path for path in PAGES if str(path.relative_to(ROOT)) not in ALLOWED], ids=str
)
def test_the_words_are_plain(path: Path) -> None:
    problems = [
        f"{path.name}:{number}: write {plain!r} instead of {phrase!r}"
        for number, line in enumerate(prose(path), start=1)
        for phrase, plain in PLAINER.items()
        if re.search(rf"\b{phrase}\b", line, flags=re.IGNORECASE)
    ]
    assert not problems, "\n".join(problems)
