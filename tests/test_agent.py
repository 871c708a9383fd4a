"""A trained agent in Python: from any of its files, in any place, acting as in training."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import mtxl_rl
from mtxl_rl.agent import Agent
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.space_json import space_from_json, space_to_json
from mtxl_rl.tracking import checkpoint
from mtxl_rl.train import main
from mtxl_rl.training.trainer import run_until_signal as run

TINY = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "ppo.rollout_length=16",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2", "device=cpu",
    "torso.width=16", "torso.num_heads=2", "ppo.num_epochs=2", "ppo.num_minibatches=2",
    "total_steps=64", "policy.episode_step=true",
]  # fmt: skip


class Count(gymnasium.Env[Any, Any]):
    """Episodes of seven steps; the observation counts them, and the reward is the last count."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({
            "count": spaces.Discrete(8), "x": spaces.Box(-1, 1, (2,), np.float32),
        })  # fmt: skip
        self.action_space = spaces.Box(-2, 3, (1,), np.float32)
        self.is_closed = False

    def _observe(self) -> dict[str, Any]:
        return {"count": self.t, "x": np.full(2, self.t / 7, np.float32)}

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401, D102
        assert self.action_space.contains(action), action
        self.t += 1
        return self._observe(), float(self.t), self.t == 7, False, {}

    def close(self) -> None:  # noqa: D102
        self.is_closed = True


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "run"
    run(compose_config([*TINY, f"run_dir={folder}"]))
    return folder


@pytest.mark.parametrize("file", ["", "checkpoints/step_000000000064.pt", "policy.safetensors"])
@pytest.mark.training
def test_each_file_of_a_run_holds_the_whole_agent(
    finished: Path, tmp_path: Path, file: str
) -> None:
    source = finished
    if file:  # Alone in another folder, under another name.
        source = tmp_path / f"moved{Path(file).suffix}"
        shutil.copy(finished / file, source)
    agent = Agent.load(source)
    assert agent.step == 64
    assert agent.config.env.corridor_length == 9
    episodes = agent.evaluate(episodes=3, num_envs=2)
    assert [episode["length"] for episode in episodes] == [10, 10, 10]
    assert episodes == Agent.load(finished).evaluate(episodes=3, num_envs=2)


@pytest.mark.parametrize("greedy", [True, False])
def test_acting_by_hand_equals_the_actors_loop(finished: Path, greedy: bool) -> None:
    agent = Agent.load(finished, seed=3)
    with closing(make_vector_env(agent.config.env, num_envs=3, seed=5)) as env:
        actor = agent.actor(env, seed=3, greedy=greedy)
        actor.reset(seed=5)
        expected = [actor.step()[0].decision.action[:, 0].tolist() for _ in range(30)]
    with closing(make_vector_env(agent.config.env, num_envs=3, seed=5)) as env:
        observation, _ = env.reset(seed=5)
        cache, reward, actions = None, np.zeros(3), []
        is_first, is_reset_row = np.ones(3, bool), np.zeros(3, bool)
        for _ in range(30):
            action, cache = agent.act(observation, cache, is_first, reward=reward, greedy=greedy)
            observation, reward, terminated, truncated, _ = env.step(action)
            is_first, is_reset_row = is_reset_row, terminated | truncated
            actions.append(action.tolist())
    assert actions == expected


@pytest.mark.training
def test_some_episodes_of_a_cache_act_and_the_others_do_not_advance(finished: Path) -> None:
    agent, rng = Agent.load(finished), np.random.default_rng(0)
    cache, alone = agent.new_cache(4), [agent.new_cache(1) for _ in range(4)]
    for _ in range(40):
        rows = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        observation = rng.random((len(rows), 3), dtype=np.float32)
        is_first, reward = rng.random(len(rows)) < 0.1, rng.random(len(rows))
        part = cache.rows(rows)
        action, part = agent.act(observation, part, is_first, reward=reward, greedy=True)
        cache.copy_rows_(rows, part)
        for i, row in enumerate(rows):
            item = slice(i, i + 1)
            expected, _ = agent.act(
                observation[item], alone[row], is_first[item], reward=reward[item], greedy=True
            )
            assert action[i] == expected[0]
            torch.testing.assert_close(cache.decision.value[row], alone[row].decision.value[0])
            assert cache.episode_step[row] == alone[row].episode_step[0]


def test_one_observation_gives_one_action_and_wrong_shapes_are_named(finished: Path) -> None:
    agent = Agent.load(finished)
    with closing(gymnasium.make("mtxl_rl/TMaze-v0", corridor_length=9)) as env:
        observation, _ = env.reset(seed=0)
        cache, is_over, reward = None, False, 0.0
        while not is_over:
            action, cache = agent.act(observation, cache, reward=reward)
            observation, reward, terminated, truncated, _ = env.step(action)
            is_over = terminated or truncated
        with pytest.warns(UserWarning, match="pass reward="):
            agent.act(observation, cache)
        with pytest.raises(ValueError, match=r"the observation has shape \[5, 5, 5\]"):
            agent.act(np.zeros((5, 5, 5)))
        with pytest.raises(ValueError, match="the cache has 1 episodes and the observation 2"):
            agent.act(np.stack([observation] * 2), cache)
        with pytest.raises(ValueError, match=r"is_first has shape \[2\]"):
            agent.act(observation, None, np.ones(2, bool))
    with pytest.raises(ValueError, match="memory=off is unknown; choose one of on, zero, noise"):
        agent.evaluate(memory="off")
    with pytest.raises(ValueError, match="episodes=0 must be 1 or more"):
        agent.evaluate(episodes=0)


class Counted(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Names the count of `Count` as the library names the step that it can add."""

    def __init__(self) -> None:
        super().__init__(Count())
        named = {"episode_step": spaces.Discrete(8), "a.b": spaces.Box(-1, 1, (2,), np.float32)}
        self.observation_space = spaces.Dict(named)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {"episode_step": observation["count"], "a.b": observation["x"]}


@pytest.mark.training
def test_acting_reads_a_leaf_that_is_called_episode_step(tmp_path: Path) -> None:
    options = {"model": "tiny", "ppo.rollout_length": 8, "torso.segment_length": 4, "num_envs": 4,
               "torso.window_length": 4, "ppo.bptt_segments": 2, "device": "cpu", "logger": "none",
               "num_processes": 1, "compile": False}  # fmt: skip
    trained = mtxl_rl.train(Counted, options, run_dir=tmp_path / "run", total_steps=64)
    agent, values = trained.agent, []
    for count in (0, 7):
        observation = {"episode_step": count, "a.b": np.zeros(2, np.float32)}
        _, cache = agent.act(observation)
        values.append(cache.decision.value.item())
    assert values[0] != values[1]
    legal = {"episode_step": 3, "a.b": [0.0, 0.5]}
    agent.act(legal)
    for changed, message in (
        ({"episode_step": 8}, r"'episode_step' has choices that are not in Discrete\(8\)"),
        ({"episode_step": 1.5}, "has choices that are not in"),
        ({"a.b": ["x", "y"]}, r"'a\.b' has the type <U1; pass an array of numbers"),
        ({"a.b": np.zeros((0, 2))}, r"has shape \[0, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.act(legal | changed)


@pytest.mark.training
def test_an_evaluation_takes_an_env_a_vector_env_and_a_function(finished: Path) -> None:
    agent = Agent.load(finished)

    def longer() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("mtxl_rl/TMaze-v0", corridor_length=20)

    vector = SyncVectorEnv([longer] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    for env in (longer, longer(), vector):
        episodes = agent.evaluate(env, episodes=3, memory="zero")
        assert [episode["length"] for episode in episodes] == [21, 21, 21]
    with pytest.raises(ValueError, match="num_envs=3 does not fit"):
        agent.evaluate(vector, num_envs=3)
    with pytest.raises(ValueError, match="this agent was trained with"):
        agent.evaluate(Count)
    assert not vector.closed


def test_files_that_hold_no_agent_are_named(finished: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((finished / "policy.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"torn\.safetensors is damaged"):
        Agent.load(torn)
    for missing in ("none.safetensors", "none.pt", "none"):
        with pytest.raises(FileNotFoundError, match=f"{missing} does not exist"):
            Agent.load(tmp_path / missing)


BOX = {"type": "Box", "shape": [2**40], "dtype": "float32", "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        "[" * 100_000, "", "7", {"config": 7}, {"config": {}}, {"config": {"env": None}},
        {"observation_space": BOX}, {"action_space": {"type": "Graph"}}, {"step": "x"},
        {"observation_space": None},
    ],
)  # fmt: skip
def test_a_damaged_description_is_named(
    finished: Path, tmp_path: Path, change: str | dict[str, Any]
) -> None:
    path = tmp_path / "damaged.pt"
    document = torch.load(checkpoint.find(finished), weights_only=True)
    text = document["state"]["description"]
    is_text = isinstance(change, str)
    document["state"]["description"] = change if is_text else json.dumps(json.loads(text) | change)
    torch.save(document, path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}"):
        Agent.load(path)


@pytest.mark.parametrize("change", [{"agent": 3}, {"agent": {}}, {"step": "x"}, {"env": 3}, None])
def test_a_checkpoint_with_values_of_other_types_is_refused(
    finished: Path, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    path = checkpoint.find(folder)
    document = torch.load(path, weights_only=True)
    document["state"] = None if change is None else document["state"] | change
    torch.save(document, path)
    config = compose_config([*TINY, f"resume={folder}", f"run_dir={folder}", "total_steps=99999"])
    with pytest.raises(ValueError, match="checkpoint"):
        run(config)


def test_an_unknown_option_names_the_file_the_option_and_the_version(
    finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("gae_lambda: ", "gae_lamda: "))
    with pytest.raises(ValueError, match="gae_lamda") as error:
        Agent.load(folder)
    text = str(error.value)
    assert text.startswith(f"{path}: option ppo.gae_lamda: ")
    assert "was written by mtxl_rl 0." in text
    assert "\n" not in text


@pytest.mark.training
def test_a_checkpoint_alone_is_resumed_evaluated_and_kept(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    alone = shutil.copy(checkpoint.find(finished), tmp_path / "alone.pt")
    main([f"resume={alone}", "total_steps=128", f"run_dir={tmp_path / 'more'}"])
    assert checkpoint.load(tmp_path / "more")["step"] == 128
    from mtxl_rl import evaluate

    for file in (alone, finished / "policy.safetensors"):
        capsys.readouterr()
        evaluate.main([f"checkpoint={file}", "episodes=2", "env.corridor_length=12", "memory=on"])
        assert "13.000 +- 0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "space",
    [
        Count().observation_space,
        spaces.Box(0, 255, (64, 64, 3), np.uint8),
        spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32)),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([3, 4], dtype=np.uint8),
        spaces.MultiBinary(4),
    ],
)
def test_a_space_survives_json(space: gymnasium.Space[Any]) -> None:
    assert space_from_json(space_to_json(space)) == space
