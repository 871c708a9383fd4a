"""The built-in tasks by name, with the settings in which each is listed and tested."""

from typing import Any, NamedTuple

from mtxl_rl.envs.tasks.cards import (
    DIFFICULTIES,
    Autoencode,
    CardConfig,
    CountRecall,
    RepeatFirst,
    RepeatPrevious,
)
from mtxl_rl.envs.tasks.color_cubes import LEVELS, ColorCubes, ColorCubesConfig
from mtxl_rl.envs.tasks.concentration import Concentration
from mtxl_rl.envs.tasks.endless_tmaze import EndlessTMaze, EndlessTMazeConfig
from mtxl_rl.envs.tasks.grid_memory_maze import TASK_SIZES, GridMemoryMaze, GridMemoryMazeConfig
from mtxl_rl.envs.tasks.memory_chain import MemoryChain, MemoryChainConfig
from mtxl_rl.envs.tasks.mortar_mayhem import MortarMayhem, MortarMayhemConfig
from mtxl_rl.envs.tasks.mystery_path import MysteryPath, MysteryPathConfig
from mtxl_rl.envs.tasks.tmaze import ActiveTMaze, ActiveTMazeConfig, TMaze, TMazeConfig
from mtxl_rl.envs.tasks.vector_task import TaskConfig, VectorTask
from mtxl_rl.envs.tasks.walker import VIEWS

Settings = dict[str, Any]


class TaskEntry(NamedTuple):
    """A built-in task: its name, config class, rules, and the settings to list and test."""

    name: str
    config_class: type[TaskConfig]
    task_class: type[VectorTask]
    variants: tuple[Settings, ...] = ({},)
    """Each variant's differences from the config's defaults."""

    def config(self, **settings: Any) -> TaskConfig:  # noqa: ANN401 - the config's fields
        """Return the config with these settings and defaults elsewhere."""
        return self.config_class(name=self.name, **settings)  # type: ignore[call-arg]

    def configs(self) -> list[TaskConfig]:
        """Return the config of each variant."""
        return [self.config(**settings) for settings in self.variants]


_BY_DIFFICULTY = tuple({"difficulty": difficulty} for difficulty in DIFFICULTIES)
_BY_LEVEL = tuple({"level": level} for level in LEVELS)
_BY_VIEW = tuple({"view": view} for view in VIEWS)
_BY_SIZE = tuple({"size": size} for size in TASK_SIZES)
_CHAINS: tuple[Settings, ...] = ({}, {"memory_length": 2, "num_bits": 40})

TASKS: dict[str, TaskEntry] = {
    task.name: task
    for task in (
        TaskEntry("TMaze", TMazeConfig, TMaze, ({}, {"num_distractors": 6})),
        TaskEntry("ActiveTMaze", ActiveTMazeConfig, ActiveTMaze),
        TaskEntry("EndlessTMaze", EndlessTMazeConfig, EndlessTMaze, ({}, {"regime": "uniform"})),
        TaskEntry("MemoryChain", MemoryChainConfig, MemoryChain, _CHAINS),
        TaskEntry("RepeatFirst", CardConfig, RepeatFirst, _BY_DIFFICULTY),
        TaskEntry("RepeatPrevious", CardConfig, RepeatPrevious, _BY_DIFFICULTY),
        TaskEntry("Autoencode", CardConfig, Autoencode, _BY_DIFFICULTY),
        TaskEntry("CountRecall", CardConfig, CountRecall, _BY_DIFFICULTY),
        TaskEntry("Concentration", CardConfig, Concentration, _BY_DIFFICULTY),
        TaskEntry("ColorCubes", ColorCubesConfig, ColorCubes, _BY_LEVEL),
        TaskEntry("MortarMayhem", MortarMayhemConfig, MortarMayhem, _BY_VIEW),
        TaskEntry("MysteryPath", MysteryPathConfig, MysteryPath, _BY_VIEW),
        TaskEntry("GridMemoryMaze", GridMemoryMazeConfig, GridMemoryMaze, _BY_SIZE),
    )
}
