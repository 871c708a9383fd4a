"""The scores of the agents in `pretrained/`, on their model cards and in README and RESULTS.

`python docs/results.py` writes the scores of the model cards into the tables of both pages;
`python docs/results.py NAME...` plays new episodes of these agents first, and changes their cards.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtxl_rl.hub import CARD_FILE, play_stored, scores_text
from mtxl_rl.saved_agent import POLICY_FILE

ROOT = Path(__file__).parents[1]
PRETRAINED = ROOT / "pretrained"
PAGES = (ROOT / "README.md", ROOT / "RESULTS.md")
_EPISODES = {"TMaze": 2000}
"""Of agents whose interval would be wide; the others play 256."""
_BY_SUCCESS = (
    "TMaze", "TMaze-distractors", "MemoryChain", "EndlessTMaze", "CountRecall", "Autoencode"
)  # fmt: skip
"""Agents whose rows have the share of successful steps or episodes; the others have the return."""
_MEMORIES = {
    "mtxl": "on", "return": "on", "zeroed": "zero", "memory zeroed": "zero", "noise": "noise"
}  # fmt: skip
"""Columns of the tables, and the setting of the memory on the cards."""

Scores = Mapping[tuple[str, str], str]
"""The text of a card's cell by setting of the memory and measure."""


def play(name: str) -> None:
    """Play an agent's new episodes, and write their means on its card."""
    folder = PRETRAINED / name
    scores = play_stored(folder / POLICY_FILE, episodes=_EPISODES.get(name, 256))
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    facts = card[: card.index("Mean and 95 %")]
    (folder / CARD_FILE).write_text(facts + scores_text(scores), encoding="utf-8")


def read_scores(name: str) -> Scores:
    """The scores on an agent's card."""
    card = (PRETRAINED / name / CARD_FILE).read_text(encoding="utf-8")
    header, _, *rows = map(_cells, card[card.index("| memory |") :].splitlines())
    return {
        (row[0], measure): cell for row in rows for measure, cell in zip(header, row, strict=True)
    }


def write_scores(page: str) -> str:
    """The page with the scores of the cards in its tables' rows about these agents."""
    header: list[str] = []
    lines = page.splitlines()
    for index, line in enumerate(lines):
        if not line.startswith("|"):
            header = []
        elif not header:
            header = _cells(line)
        elif name := agent_of(line):
            lines[index] = _with_scores(line, header, name)
    return "\n".join(lines) + "\n"


def agent_of(row: str) -> str:
    """The agent that a row of a table is about: of its `env=`, or named in its first cell."""
    preset = re.search(r"`env=([\w-]+)", row)
    first = re.sub(r"[^\w-]|-(?=maze)", "", _cells(row)[0].partition(",")[0]).lower()
    names = {folder.name.lower(): folder.name for folder in PRETRAINED.iterdir()}
    return names.get((preset[1] if preset else first).lower(), "")


def _with_scores(row: str, header: Sequence[str], name: str) -> str:
    """The row with a card's scores in the columns that have them."""
    if "zeroed" not in " ".join(header):
        return row
    scores, cells = read_scores(name), _cells(row)
    is_success = name in _BY_SUCCESS and "return" not in header
    for column, title in enumerate(header):
        if cells[column] and (memory := _MEMORIES.get(title)):
            cells[column] = _rounded(scores[memory, "success" if is_success else "return"])
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _rounded(score: str) -> str:
    """One decimal where the interval is wide: of the returns in mazes."""
    mean, interval = map(float, score.split(" +- "))
    return f"{mean:.1f} +- {interval:.1f}" if interval > 0.4 else score


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def main() -> None:
    """Play the agents that the command line names, then write both pages."""
    for name in sys.argv[1:]:
        play(name)
    for page in PAGES:
        page.write_text(write_scores(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
