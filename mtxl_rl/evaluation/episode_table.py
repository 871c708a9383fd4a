"""The table that evaluations print: means of episodes with 95 % confidence intervals."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mtxl_rl.evaluation.intervals import mean_text
from mtxl_rl.tracking.cli import show


def show_episodes(
    results: Mapping[str, Sequence[Mapping[str, float]]], *, title: str, label: str
) -> None:
    """Print a row for each entry of `results`, its episodes' statistics by name.

    Args:
        results: Episodes by the row's name.
        title: What was played.
        label: Header of the rows' names.
    """
    table = Table(title=f"{title}: mean +- 95 % confidence interval, by {label}")
    table.add_column(label.split()[-1])
    keys = sorted({key for episodes in results.values() for key in episodes[0]})
    for key in ["episodes", *keys]:
        table.add_column(key, justify="right")
    for name, episodes in results.items():
        cells = [mean_text([episode[key] for episode in episodes]) for key in keys]
        table.add_row(name, str(len(episodes)), *cells)
    show(table)
