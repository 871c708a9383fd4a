"""Share agents: `python -m mtxl_rl.hub push checkpoint=RUN_DIR to=hf://USER/NAME`, and `pull`.

A shared agent is a folder with two files: `policy.safetensors`, a whole agent, and `README.md`, its
model card. The folder lies on the disk or in a repository of the Hugging Face hub.
"""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtxl_rl.agents.episodes import MEMORIES
from mtxl_rl.agents.policy import PRECISIONS
from mtxl_rl.command import Command, options_of, print_help, run_command
from mtxl_rl.envs.names import check_choice
from mtxl_rl.evaluation.ablations import evaluate_ablations
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.evaluation.intervals import mean_text
from mtxl_rl.saved_agent import (
    HUB_PREFIX,
    POLICY_FILE,
    SavedAgent,
    describe_agent,
    local_copy,
    read_agent,
    require_hub,
    run_folder,
    save_policy,
)
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import one_sentence_errors, print_line
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.tracking.run_record import read_record

CARD_FILE = "README.md"
RATIO_DEVIATION = "losses/ratio_deviation"
MAX_ENVS = 64
"""Environments that play a model card's episodes together."""


@dataclass(kw_only=True, slots=True)
class PushConfig:
    """The options of `mtxl_rl.hub push`."""

    checkpoint: str = ""
    """A run's folder, a checkpoint file (.pt), or a policy.safetensors."""
    to: str = ""
    """A folder, or hf://USER/NAME, a repository of the Hugging Face hub."""
    which: str = "latest"
    """Which checkpoint of a run's folder: latest or best."""
    weights: str = "float32"
    """Storage of the weights: float32, or bfloat16, which halves the file. The model card's scores
    are those of the stored weights."""
    episodes: int = 100
    """Episodes for each setting of the long-term memory on the model card."""
    private: bool = False
    """Create the repository as a private one."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.checkpoint:
            raise ValueError("checkpoint= is missing; give a run's folder")
        if not self.to:
            raise ValueError(f"to= is missing; give a folder, or {HUB_PREFIX}USER/NAME")
        check_choice("weights", self.weights, PRECISIONS)
        check_at_least(self, 1, "episodes")


@dataclass(kw_only=True, slots=True)
class PullConfig:
    """The options of `mtxl_rl.hub pull`."""

    source: str = ""
    """A folder, or hf://USER/NAME, a repository of the Hugging Face hub."""
    output: str = ""
    """The folder to write."""

    def __post_init__(self) -> None:
        """Check that both are given."""
        if not self.source:
            raise ValueError(f"source= is missing; give {HUB_PREFIX}USER/NAME, or a folder")
        if not self.output:
            raise ValueError("output= is missing; give the folder to write")


def push(config: PushConfig) -> None:
    """Write an agent and its model card to a folder, or to a repository of the hub.

    Raises:
        ImportError: `to` is a repository, and huggingface_hub is missing.
        FileNotFoundError: there is no such agent.
    """
    is_repository = config.to.startswith(HUB_PREFIX)
    if is_repository:
        require_hub()
    saved = read_agent(Path(config.checkpoint), which=config.which)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        policy = saved.build_policy(torch.device("cpu")).to(PRECISIONS[config.weights])
        # Without the paths of this machine: a teacher keeps its folder's name.
        teacher = replace(saved.config.teacher, policy=Path(saved.config.teacher.policy).name)
        shared = replace(saved.config, run_dir="", resume="", teacher=teacher)
        description = describe_agent(shared, saved, step=saved.step)
        save_policy(policy, folder / POLICY_FILE, description=description)
        scores = play_stored(folder / POLICY_FILE, episodes=config.episodes)
        num_parameters = sum(weight.numel() for weight in policy.parameters())
        card = model_card(saved, scores, num_parameters=num_parameters)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        if is_repository:
            import huggingface_hub

            api, name = huggingface_hub.HfApi(), config.to.removeprefix(HUB_PREFIX)
            api.create_repo(name, private=config.private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder)
        else:
            _copy(folder, Path(config.to))
    print_line(f"wrote {POLICY_FILE} and {CARD_FILE} to {config.to}")


def pull(config: PullConfig) -> None:
    """Copy a shared agent into a folder.

    Raises:
        ImportError: `source` is a repository, and huggingface_hub is missing.
        FileNotFoundError: there is no agent in the folder.
    """
    folder = local_copy(Path(config.source))
    for name in (POLICY_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"source={config.source} has no {name}; give a folder or repository that "
                "`python -m mtxl_rl.hub push` wrote"
            )
    _copy(folder, Path(config.output))
    print_line(f"python -m mtxl_rl.evaluate checkpoint={config.output}")


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (POLICY_FILE, CARD_FILE):
        shutil.copyfile(source / name, target / name)


def play_stored(policy_file: Path, *, episodes: int) -> dict[str, list[dict[str, float]]]:
    """New episodes of a stored policy, by the setting of its long-term memory."""
    stored = read_agent(policy_file)
    has_long_term = stored.config.torso.has_long_term
    options = EvaluateConfig(
        checkpoint=str(policy_file),
        episodes=episodes,
        num_envs=min(episodes, MAX_ENVS),
        memory=list(MEMORIES if has_long_term else ("on",)),
        device="cpu",
    )
    scores: dict[str, list[dict[str, float]]] = {}
    stored = replace(stored, config=options.train_config(stored.config))
    evaluate_ablations(options, stored, options.memory, scores)
    return scores


def model_card(
    saved: SavedAgent, scores: Mapping[str, Sequence[dict[str, float]]], *, num_parameters: int
) -> str:
    """The model card of an agent, in Markdown, with the means of its episodes."""
    config = saved.config
    facts = {
        "Task": f"`{config.env.name}`",
        "Steps": f"{saved.step:,}",
        "Seed": str(config.seed),
        "Parameters": f"{num_parameters:,}",
        "Windows reach": f"{config.torso.receptive_field} steps back",
        **_run_facts(saved.path),
    }
    return "\n".join([
        "---",
        "library_name: mtxl_rl",
        "tags: [reinforcement-learning, memory]",
        "---",
        "",
        f"# {config.env.name}, {config.torso.kind} torso",
        "",
        *(["```bash", command, "```", ""] if (command := facts.pop("Command", "")) else []),
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        scores_text(scores),
    ])  # fmt: skip


def scores_text(scores: Mapping[str, Sequence[dict[str, float]]]) -> str:
    """The end of a model card: the means of an agent's episodes."""
    measures = sorted({key for episode in scores["on"] for key in episode})
    table = [f"| memory | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    for name, played in scores.items():
        cells = [mean_text([episode[key] for episode in played]) for key in measures]
        table.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([
        f"Mean and 95 % interval of {len(scores['on'])} new episodes for each setting of the "
        "long-term memory (zero: zeroed before every step; noise: replaced by noise of the same "
        "scale):",
        "",
        *table,
        "",
    ])  # fmt: skip


def _run_facts(path: Path) -> dict[str, str]:
    """Facts that only the run's folder holds; none for a file that was moved out of it."""
    folder = run_folder(path)
    if folder is None:
        return {}
    facts = dict[str, str]()
    deviations = [row.get(RATIO_DEVIATION) for row in read_rows(folder)]
    if measured := [deviation for deviation in deviations if deviation is not None]:
        facts["Largest ratio deviation"] = f"{max(measured):.1e}"
    if record := read_record(folder):
        words = shlex.split(record[0]["command"])
        if "-m" in words:
            options = [_without_path(word) for word in words[words.index("-m") :]]
            facts["Command"] = f"python {shlex.join(filter(None, options))}"
        facts["mtxl_rl"] = f"{record[-1]['mtxl_rl']}, commit {record[-1]['commit']}"
        facts["Trained"] = f"{record[-1]['end']}, torch {record[-1]['torch']}"
    return facts


def _without_path(word: str) -> str:
    """A word of a run's command without paths of its machine; empty where nothing is left."""
    name, _, value = word.partition("=")
    if name in ("run_dir", "resume"):
        return ""
    return f"{name}={Path(value).name}" if name == "teacher.policy" else word


PUSH_USAGE = """\
python -m mtxl_rl.hub push checkpoint=RUN_DIR to=FOLDER             an agent with its model card
python -m mtxl_rl.hub push checkpoint=RUN_DIR to=hf://USER/NAME     the same on the Hugging Face hub
"""
PULL_USAGE = """\
python -m mtxl_rl.hub pull source=hf://USER/NAME output=FOLDER      a copy of such an agent
"""
_ACTIONS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "push": (PushConfig, push, PUSH_USAGE),
    "pull": (PullConfig, pull, PULL_USAGE),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    action, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if action in ("--help", "-h"):
        for name in _ACTIONS:
            print_help(_command(name))
            sys.stdout.write("\n")
        return
    if action not in _ACTIONS:
        with one_sentence_errors():
            raise ValueError(f"{action} is unknown; type push or pull, or --help")
    _, run, _ = _ACTIONS[action]
    run_command(rest, describe=lambda _: _command(action), run=run)


def _command(action: str) -> Command:
    schema, _, usage = _ACTIONS[action]
    return Command(usage=usage, options=options_of(schema), base=schema)


if __name__ == "__main__":
    main()
