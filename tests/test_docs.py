"""The generated pages and pictures of the documentation."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import mtxl_rl
from mtxl_rl import torso
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.train import EXPECTED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PRETRAINED = ROOT / "pretrained"
MAX_PICTURE_BYTES = 3_000_000


@pytest.fixture
def reference_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("reference_pages")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("PIL")
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("figures")


def test_the_screen_in_readme_is_a_printed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    screens = importlib.import_module("screens")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(.*?)\n```", page, flags=re.DOTALL)
    printed = f"a title\n┏━━┓\n{shown}\n└──┘\n"
    assert screens.table(printed.replace("│ memory │", "┃ memory ┃")) == shown
    assert screens.write_screen(page, printed) == page
    assert [line.split()[1] for line in shown.splitlines()] == ["memory", "on", "zero", "noise"]


def test_the_tables_have_the_scores_of_the_model_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    results = importlib.import_module("results")
    shown = set[str]()
    for path in results.PAGES:
        page = path.read_text(encoding="utf-8")
        assert results.write_scores(page) == page
        shown |= {results.agent_of(line) for line in page.splitlines() if line.startswith("| ")}
    assert shown - {""} == {folder.name for folder in PRETRAINED.iterdir()}
    row = "| TMaze, 150k | `env=TMaze` | 0.1 | 0.2 | 0.3 | 0.4 |"
    header = "| task | options | mtxl | memory zeroed | noise | GTrXL |"
    cells = results.write_scores(f"{header}\n|---|---|---|---|---|---|\n{row}\n").split(" | ")
    assert cells[-1].startswith("0.4")
    assert "0.1" not in cells


def test_every_metric_is_explained() -> None:
    groups = "auxiliary|charts|eval|histograms|lm|losses|teacher|time|world"
    names = {
        name
        for path in (ROOT / "mtxl_rl").glob("**/*.py")
        for name in re.findall(rf'"((?:{groups})/[a-z_]+)"', path.read_text(encoding="utf-8"))
    }
    pages = "".join(
        (DOCS / page).read_text(encoding="utf-8") for page in ("training.md", "language_model.md")
    )
    assert len(names) > 20
    assert not {name for name in names if f"`{name}`" not in pages}


def test_every_task_has_a_page(reference_pages: ModuleType, tmp_path: Path) -> None:
    reference_pages.write_tasks(tmp_path)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    for name in ("MemoryMaze", *TASKS):
        page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert f"schema/{name}@env" in page
        assert f"[{name}]({name}.md)" in index
        assert "Reward" in page.split("## Rules")[1]


def test_a_page_has_only_its_own_rules_and_results(
    reference_pages: ModuleType, tmp_path: Path
) -> None:
    reference_pages.write_tasks(tmp_path)
    page = (tmp_path / "TMaze.md").read_text(encoding="utf-8")
    assert "| TMaze, 150k |" in page
    assert page.index("`env=TMaze`:") < page.index("`env=TMaze-distractors`:")
    assert "must fetch the cue first" not in page
    assert "CountRecall" not in page


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("TMaze", "| TMaze-distractors, 400k "),
        ("MemoryChain", "| MemoryChain, 400k "),
        ("EndlessTMaze", "| Endless T-maze, 300k "),
        ("GridMemoryMaze", "| GridMemoryMaze 13x13, "),
    ],
)
def test_a_page_has_the_results_of_todays_defaults(
    name: str, row: str, reference_pages: ModuleType, tmp_path: Path
) -> None:
    reference_pages.write_tasks(tmp_path)
    assert f"\n{row}" in (tmp_path / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["ActiveTMaze", "MysteryPath", "Concentration"])
def test_a_page_without_results_states_that_no_agent_learned_the_task(
    name: str, reference_pages: ModuleType, tmp_path: Path
) -> None:
    reference_pages.write_tasks(tmp_path)
    results = (tmp_path / f"{name}.md").read_text(encoding="utf-8").split("## Results\n\n")[1]
    assert results.strip().lower() == EXPECTED[name].lower()


def test_every_command_has_its_options_on_a_page(
    reference_pages: ModuleType, tmp_path: Path
) -> None:
    reference_pages.write_options(tmp_path)
    page = (tmp_path / "options.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "mtxl_rl").glob("*.py")):
        if "\nUSAGE = " in path.read_text(encoding="utf-8"):
            section = re.search(rf"^## .*`python -m mtxl_rl\.{path.stem}.*\n\n\| opt", page, re.M)
            assert section, path.stem


def test_code_in_docstrings_becomes_a_directive(reference_pages: ModuleType) -> None:
    lines = ["An agent.", "", "  ```python", "  act()", "  ```", "", "Args:"]
    reference_pages.convert_fences(lines)
    expected = ["An agent.", "", "  .. code-block:: python", "", "      act()", "", "", "Args:"]
    assert lines == expected


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_drawn(name: str, figures: ModuleType, tmp_path: Path) -> None:
    frames = figures.task_frames(TASKS[name], num_steps=6)
    assert len({frame.shape for frame in frames}) == 1
    assert any((frame != frames[0]).any() for frame in frames)
    path = tmp_path / "task.gif"
    figures.write_gif(path, frames, frames_per_second=4, num_colors=32)
    with figures.Image.open(path) as video:
        drawn = np.asarray(video.convert("RGB"), dtype=float)
    assert drawn.shape == frames[0].shape
    assert abs(drawn - frames[0]).mean() < 8  # The palette has few colours.


def test_the_explorer_is_drawn_next_to_the_maze(figures: ModuleType) -> None:
    frames = figures.maze_frames(num_steps=3, seed=0)
    assert len(frames) == 4
    assert (frames[0] != frames[3]).any()


def test_the_agent_is_drawn_with_what_it_remembers(figures: ModuleType) -> None:
    frames = figures.agent_frames(PRETRAINED / figures._AGENT, num_steps=40, seed=0)
    assert len(frames) == 41
    rings = (255 * np.array(figures.TARGET_COLORS[:3])).astype(np.uint8)  # Of spheres seen later.
    right = [frame[:, frame.shape[1] // 2 :, None] for frame in frames]
    num_ring_pixels = [int((frame == rings).all(axis=-1).sum()) for frame in right]
    assert num_ring_pixels[-1] > num_ring_pixels[0]


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("drawings")


def test_the_drawings_are_made_and_committed(drawings: ModuleType, tmp_path: Path) -> None:
    drawings.main(tmp_path)
    for name in drawings.NAMES:
        drawn, committed = (
            re.findall(r"<text[^>]*>([^<]*)", path.read_text(encoding="utf-8"))
            for path in (tmp_path / name, DOCS / "images" / name)
        )
        assert drawn
        assert drawn == committed, "python docs/drawings.py makes them again"


def test_the_delta_rule_keeps_new_values_and_a_sum_does_not(drawings: ModuleType) -> None:
    errors = drawings.read_errors(num_writes=100)
    assert errors["delta rule"][-20:].max() < 1 < errors["sum (linear attention)"][-20:].min()


def test_the_api_page_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: mtxl_rl\.(?:train\.)?(\w+)$", page, re.M))
    assert "torso" in documented
    assert set(mtxl_rl.__all__) <= documented | set(torso.__all__)
    for path in (ROOT / "mtxl_rl/integrations").glob("[a-z]*.py"):
        assert f".. automodule:: mtxl_rl.integrations.{path.stem}\n" in page


def test_the_drawn_paths_are_equal(drawings: ModuleType) -> None:
    acted, learned, _ = drawings.both_paths()
    assert np.abs(acted - learned).max() < 1e-12
    assert np.ptp(acted) > 0.1


@pytest.mark.parametrize("is_truncated", [False, True])
def test_only_a_truncated_episode_uses_the_reset_rows_value(
    drawings: ModuleType, *, is_truncated: bool
) -> None:
    sources, valid = drawings.bootstrap_sources(is_truncated=is_truncated)
    assert valid.tolist() == [True, True, True, False, True, True, True]
    arrows = set(zip(*(axis.tolist() for axis in sources.nonzero()), strict=True))
    assert arrows == {(0, 1), (1, 2), (4, 5), (5, 6)} | ({(2, 3)} if is_truncated else set())


@pytest.mark.parametrize("name", ["first_run", "evaluating_memory"])
def test_a_notebook_converts_to_ipynb(name: str, tmp_path: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    page = DOCS / "tutorials" / f"{name}.md"
    path = tmp_path / f"{name}.ipynb"
    jupytext.write(jupytext.read(page), path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    blocks = re.findall(r"```python\n(.*?)\n```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 1
    assert sources == blocks


def test_the_committed_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in (DOCS / "images").iterdir()) < MAX_PICTURE_BYTES


def test_the_tests_that_pages_name_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    for page in (*ROOT.glob("*.md"), *DOCS.glob("**/*.md")):
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in sources, f"{page.name} names {name}, which does not exist"
