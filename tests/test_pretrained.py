"""The agents in `pretrained/` do what their model cards claim."""

from pathlib import Path

import pytest

from mtxl_rl.agent import Agent

FOLDER = Path(__file__).parents[1] / "pretrained"
AGENTS = sorted(path.parent for path in FOLDER.glob("*/policy.safetensors"))
MAX_BYTES = 3_000_000


def test_there_are_agents() -> None:
    assert AGENTS


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_an_agent_is_small_and_has_a_model_card(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "python -m mtxl_rl.train env=" in card
    assert "| noise |" in card


@pytest.mark.training
@pytest.mark.parametrize("name", ["TMaze", "TMaze-distractors", "MemoryChain", "EndlessTMaze"])
def test_a_solved_task_needs_the_memory(name: str) -> None:
    agent = Agent.load(FOLDER / name, device="cpu")
    success = {
        memory: [episode["success"] for episode in agent.evaluate(episodes=32, memory=memory)]
        for memory in ("on", "zero")
    }
    assert sum(success["on"]) > 28
    assert sum(success["zero"]) < 28


@pytest.mark.training
@pytest.mark.parametrize(
    ("name", "least_gain"),
    [
        ("GridMemoryMaze-GPS", 15),  # 75 and 22 in 256 episodes
        ("MemoryMaze-GPS", 5),  # 21.7 and 3.9 in 256 episodes
        ("MemoryMaze-odometry", 5),  # 22.8 and 5.5 in 256 episodes
    ],
)
def test_a_maze_agent_needs_the_memory(name: str, least_gain: float) -> None:
    agent = Agent.load(FOLDER / name, device="cpu")
    with_memory, without = (
        sum(episode["return"] for episode in agent.evaluate(episodes=16, memory=memory)) / 16
        for memory in ("on", "zero")
    )
    assert with_memory > without + least_gain
