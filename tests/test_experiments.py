"""Every experiment has the same front matter, a legal status and a line in the index."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "experiments"
ENTRIES = sorted(FOLDER.glob("20*.md"))
KEYS = ["question", "date", "command", "commit", "status"]
DATE_LENGTH = len("2026-11-24-")
SLUGS = {path.stem[DATE_LENGTH:] for path in ENTRIES}


def test_slugs_are_unique() -> None:
    assert len(SLUGS) == len(ENTRIES) > 0


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_an_entry_has_front_matter(path: Path) -> None:
    _, header, body = path.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    fields = dict(line.split(": ", maxsplit=1) for line in header.splitlines())
    assert list(fields) == KEYS
    assert all(fields.values())
    assert path.stem.startswith(f"{fields['date']}-")
    assert re.fullmatch(r'"[0-9a-f]{7,}"', fields["commit"])
    assert body.startswith("\n# ")
    status, _, slug = fields["status"].partition(" by ")
    if status == "superseded":
        assert slug in SLUGS - {path.stem[DATE_LENGTH:]}
    else:
        assert fields["status"] in {"adopted", "negative", "open"}


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_the_command_can_be_typed(path: Path) -> None:
    """It is a setting, or its program exists; an entry names the commit that removed a program.

    Options are not checked, because some of them were removed since.
    """
    text = path.read_text(encoding="utf-8")
    command = re.findall(r'^command: "(.*)"$', text, flags=re.MULTILINE)[0]
    if command.startswith("setting: "):
        return
    python, *words = shlex.split(command)
    assert python == "python"
    assert "..." not in words
    if words[0] == "-m":
        module = ROOT.joinpath(*words[1].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    else:
        is_removed = re.search(rf"`{words[0]}` is in .* removed in `[0-9a-f]{{7,}}`", text)
        assert (ROOT / words[0]).is_file() or is_removed
    if words[:2] == ["-m", "mtxl_rl.train"]:
        assert all(re.match(r"[a-z_.0-9]+=", word) for word in words[2:])


def test_the_index_lists_every_entry_newest_first() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| \[.*?\]\((.*?)\) \| (.*?) \|", index, flags=re.MULTILINE)
    assert sorted(name for _, name, _ in rows) == [path.name for path in ENTRIES]
    assert [date for date, _, _ in rows] == sorted((date for date, _, _ in rows), reverse=True)
    for date, name, status in rows:
        entry = (FOLDER / name).read_text(encoding="utf-8")
        assert f"\ndate: {date}\n" in entry
        plain_status = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", status)
        assert f"\nstatus: {plain_status}\n" in entry
