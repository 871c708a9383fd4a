"""sb3-contrib's RecurrentPPO in this library's environments or its own: the time of each part."""

import functools
import os
import time
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from mtxl_rl.agents.stagger import Stagger
from mtxl_rl.config import TrainConfig


class AsVecEnv(VecEnv):
    """A Gymnasium vector environment as Stable-Baselines3's; all but pictures become vectors.

    Reset rows of NEXT_STEP autoreset are passed on unchanged: an episode begins with one more step,
    which shows the last observation of the one before.
    """

    def __init__(self, env: Any, *, stagger_steps: int) -> None:  # noqa: ANN401
        space = env.single_observation_space
        self.env, self.seconds = env, 0.0
        self.stagger = Stagger.over(stagger_steps, env.num_envs)
        self.is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
        if not self.is_image:
            leaves = space.values() if isinstance(space, spaces.Dict) else [space]
            size = sum(int(np.prod(leaf.shape)) for leaf in leaves)
            space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        super().__init__(env.num_envs, space, env.single_action_space)

    def reset(self) -> NDArray[Any]:
        """The first observations, where the random steps of a training run's start have led."""
        return self._seen(self.stagger.run(self.env, *self.env.reset())[0])

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """One step of all environments."""
        begun = time.perf_counter()
        observation, reward, terminated, truncated, _ = self.env.step(self.actions)
        self.seconds += time.perf_counter() - begun
        seen, ended = self._seen(observation), terminated | truncated
        infos = [{"terminal_observation": seen[i]} if ended[i] else {} for i in range(len(seen))]
        return seen, np.asarray(reward, np.float32), ended, infos

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def env_is_wrapped(self, wrapper: type, indices: object = None) -> list[bool]:  # noqa: ARG002
        """None is."""
        return [False] * self.num_envs

    def env_method(self, name: str, *_: object, **__: object) -> list[Any]:
        """Not needed."""
        raise NotImplementedError(name)

    def get_attr(self, name: str, indices: object = None) -> list[Any]:  # noqa: ARG002
        """No attribute is set."""
        return [None] * self.num_envs

    def set_attr(self, name: str, value: object, indices: object = None) -> None:
        """Not needed."""
        raise NotImplementedError(name)

    def _seen(self, observation: Any) -> NDArray[Any]:  # noqa: ANN401
        if self.is_image:
            return observation
        leaves = observation.values() if isinstance(observation, dict) else [observation]
        rows = [np.asarray(leaf, np.float32).reshape(self.num_envs, -1) for leaf in leaves]
        return np.concatenate(rows, axis=1)


class Timed(VecEnvWrapper):
    """A vector environment of Stable-Baselines3, and its seconds from actions to answers."""

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env)
        self.seconds = 0.0

    def reset(self) -> Any:  # noqa: ANN401
        """The first observations."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Send the actions."""
        self.begun = time.perf_counter()
        self.venv.step_async(actions)

    def step_wait(self) -> Any:  # noqa: ANN401
        """Wait for all environments."""
        answers = self.venv.step_wait()
        self.seconds += time.perf_counter() - self.begun
        return answers


def package_mazes(num_processes: int) -> Timed:
    """Memory Maze 9x9 of the package memory-maze, untouched, in Stable-Baselines3's processes."""
    return Timed(SubprocVecEnv([functools.partial(package_maze, i) for i in range(num_processes)]))


def package_maze(seed: int) -> Any:  # noqa: ANN401
    """One of them, of gym 0.26 with the API of before: Stable-Baselines3 adapts it by shimmy.

    gym's checker, which calls what NumPy 2 no longer has, is left out. On a CPU, OSMesa is a tenth
    faster than EGL and takes less memory.
    """
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    warnings.filterwarnings("ignore", module="gym|stable_baselines3|shimmy")
    import gym

    return gym.make("memory_maze:MemoryMaze-9x9-v0", disable_env_checker=True, seed=seed)


class Peer:
    """RecurrentPPO of a configuration's sizes: actor and critic have an LSTM each, its default."""

    def __init__(self, env: AsVecEnv | Timed, config: TrainConfig, *, num_threads: int) -> None:
        self.env, self.num_threads = env, num_threads
        self.num_steps = env.num_envs * config.ppo.rollout_length
        is_image = len(env.observation_space.shape) == 3
        sizes = {"lstm_hidden_size": config.torso.width, "n_lstm_layers": config.torso.num_layers}
        self.model = RecurrentPPO(
            "CnnLstmPolicy" if is_image else "MlpLstmPolicy",
            self.env,
            n_steps=config.ppo.rollout_length,
            batch_size=self.num_steps // config.ppo.num_minibatches,
            n_epochs=config.ppo.num_epochs,
            policy_kwargs=sizes,
            device=config.device,
        )
        self.num_weights = sum(p.numel() for p in self.model.policy.parameters())
        self.train, self.model.train = self.model.train, self._timed_train

    def iterate(self) -> tuple[float, float, float]:
        """Seconds of one rollout and its learning: in all, in the environments, in learning."""
        begun, self.env.seconds, self.learning = time.perf_counter(), 0.0, 0.0
        torch.set_num_threads(self.num_threads)
        self.model.learn(self.num_steps, reset_num_timesteps=False)
        torch.set_num_threads(1)
        return time.perf_counter() - begun, self.env.seconds, self.learning

    def _timed_train(self) -> None:
        begun = time.perf_counter()
        self.train()
        self.learning += time.perf_counter() - begun
