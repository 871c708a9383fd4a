"""Documentation, comments, docstrings, messages and names avoid what has a plainer equivalent."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "RESULTS.md")
PAGES = [
    *(ROOT / name for name in NAMES),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/tutorials/*.md")),
    *sorted(ROOT.glob("docs/experiments/*.md")),
]
SOURCES = [
    path for folder in ("mtxl_rl", "tests") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
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
PHRASES = re.compile(rf"\b({'|'.join(PLAINER)})\b", flags=re.IGNORECASE)
PLAINER_NAMES = {
    "said": "stderr, or message",
    "told": "expected, or message",
    "found": "the quantity, such as metrics",
    "theirs": "expected, or original",
    "mine": "the quantity",
}
"""Names of variables that state a grammatical role, not a quantity."""
ALLOWED = {"tests/test_prose.py"}
"""This file lists the phrases."""


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a page, without its code; of the changelog only the unreleased section."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = "## ".join(text.split("\n## ")[:2])
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    yield from enumerate(re.sub(r"`[^`\n]*`", "", text).splitlines(), start=1)


def tokens(path: Path, *kinds: int) -> Iterator[tuple[int, str]]:
    """Tokens of a Python file, with their line numbers."""
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type in kinds:
            yield token.start[0], token.string


def plainer(line: str) -> Iterator[str]:
    """What to write instead of the phrases in a line."""
    for match in PHRASES.findall(line):
        yield f"write {PLAINER[match.lower()]!r} instead of {match!r}"


def checked(paths: list[Path]) -> list[Path]:
    """The paths without the allowed ones."""
    return [path for path in paths if path.relative_to(ROOT).as_posix() not in ALLOWED]


@pytest.mark.parametrize("path", checked(PAGES), ids=str)
def test_the_documentation_is_plain(path: Path) -> None:
    problems = [
        f"{path.name}:{number}: {advice}"
        for number, line in prose(path)
        for advice in plainer(line)
    ]
    assert not problems, "\n".join(problems)


def test_comments_docstrings_and_messages_are_plain() -> None:
    # Python 3.12 splits f-strings into tokens of their own.
    kinds = [tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)]
    problems = [
        f"{path.relative_to(ROOT)}:{number}: {advice}"
        for path in checked(SOURCES)
        for number, text in tokens(path, *kinds)
        for advice in plainer(" ".join(text.split()))
    ]
    assert not problems, "\n".join(problems)


def test_names_say_what_they_hold() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{number}: {name!r}; name the quantity: {PLAINER_NAMES[name]}"
        for path in checked(SOURCES)
        for number, name in tokens(path, tokenize.NAME)
        if name in PLAINER_NAMES
    ]
    assert not problems, "\n".join(problems)
