"""Documentation, comments, docstrings, messages and names avoid what has a plainer equivalent."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "RESULTS.md",
    "SECURITY.md",
)
PAGES = [
    *(ROOT / name for name in NAMES),
    *sorted(ROOT.glob("pretrained/*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/tutorials/*.md")),
    *sorted(ROOT.glob("docs/experiments/*.md")),
]
SOURCES = [
    path
    for folder in ("mtxl_rl", "tests", "examples", "docs")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
PLAINER = {
    "goes on": "continues",
    "go on": "continue",
    "held against": "compared with",
    "at once": "immediately, or together",
    "whoever": "an agent that",
    "beside": "next to, or in addition to",
    "told": "passed, or reported",
    "tells": "reports, or shows",
    "said": "reported, or equal",
    "say": "report, name, or show",
    "says": "reports, names, or shows",
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
    "own": "the quantity, such as local_rows",
    "made": "the object, such as instance",
    "one": "the object, such as row",
}
"""Names of variables that state a grammatical role, not a quantity."""
PLAINER_WORDS = PLAINER | {
    "said": "reported, or equal",
    "say": "report, or print",
    "says": "reports, or lists",
    "tells": "reports, or names",
    "asked": "queried, or chosen",
    "apart": "separately",
    "twin": "copy, or the role of the object",
}
"""Words that no name contains."""
WORDS = re.compile(rf"\b({'|'.join(PLAINER_WORDS)})\b")
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


def plainer_name(name: str) -> Iterator[str]:
    """How to rename an identifier."""
    if name in PLAINER_NAMES:
        yield f"name the quantity: {PLAINER_NAMES[name]}"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
    for word in WORDS.findall(words):
        yield f"write {PLAINER_WORDS[word]!r} instead of {word!r}"


def test_names_are_plain() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{number}: {name!r}; {advice}"
        for path in checked(SOURCES)
        for number, name in tokens(path, tokenize.NAME)
        for advice in plainer_name(name)
    ]
    assert not problems, "\n".join(problems)


def test_the_words_of_a_name_are_checked() -> None:
    assert list(plainer_name("test_a_run_goes_on")) == ["write 'continues' instead of 'goes on'"]
    assert list(plainer_name("MyTwin")) == [
        "write 'copy, or the role of the object' instead of 'twin'"
    ]
    assert list(plainer_name("own")) == ["name the quantity: the quantity, such as local_rows"]
    assert not list(plainer_name("essays_of_one_run"))
