"""The built-in tasks by name, with the settings in which each is listed and tested."""

from typing import Any, NamedTuple

from mtxl_rl.envs.tasks.cards import (
    DIFFICULTIES,
    Autoencode,
    AutoencodeConfig,
    CountRecall,
    CountRecallConfig,
    RepeatFirst,
    RepeatFirstConfig,
    RepeatPrevious,
    RepeatPreviousConfig,
)
from mtxl_rl.envs.tasks.color_cubes import LEVELS, ColorCubes, ColorCubesConfig
from mtxl_rl.envs.tasks.concentration import Concentration, ConcentrationConfig
from mtxl_rl.envs.tasks.endless_tmaze import EndlessTMaze, EndlessTMazeConfig
from mtxl_rl.envs.tasks.grid_memory_maze import SIZES, GridMemoryMaze, GridMemoryMazeConfig
from mtxl_rl.envs.tasks.memory_chain import MemoryChain, MemoryChainConfig
from mtxl_rl.envs.tasks.mortar_mayhem import VIEWS, MortarMayhem, MortarMayhemConfig
from mtxl_rl.envs.tasks.mystery_path import MysteryPath, MysteryPathConfig
from mtxl_rl.envs.tasks.tmaze import ActiveTMaze, ActiveTMazeConfig, TMaze, TMazeConfig
from mtxl_rl.envs.tasks.vector_task import TaskConfig, VectorTask

Settings = dict[str, Any]


class Task(NamedTuple):
    """A built-in task: its config, its rules, and its settings of interest."""

    config_class: type[TaskConfig]
    task_class: type[VectorTask]
    variants: tuple[Settings, ...] = ({},)
    """What differs from the config's defaults in each."""

    def configs(self) -> list[TaskConfig]:
        """The config of each variant."""
        return [self.config_class(**settings) for settings in self.variants]


_BY_DIFFICULTY = tuple({"difficulty": difficulty} for difficulty in DIFFICULTIES)

TASKS: dict[str, Task] = {
    "TMaze": Task(TMazeConfig, TMaze, ({}, {"num_distractors": 6})),
    "ActiveTMaze": Task(ActiveTMazeConfig, ActiveTMaze),
    "EndlessTMaze": Task(EndlessTMazeConfig, EndlessTMaze, ({}, {"regime": "uniform"})),
    "MemoryChain": Task(MemoryChainConfig, MemoryChain, ({}, {"memory_length": 2, "num_bits": 40})),
    "RepeatFirst": Task(RepeatFirstConfig, RepeatFirst, _BY_DIFFICULTY),
    "RepeatPrevious": Task(RepeatPreviousConfig, RepeatPrevious, _BY_DIFFICULTY),
    "Autoencode": Task(AutoencodeConfig, Autoencode, _BY_DIFFICULTY),
    "CountRecall": Task(CountRecallConfig, CountRecall, _BY_DIFFICULTY),
    "Concentration": Task(ConcentrationConfig, Concentration, _BY_DIFFICULTY),
    "ColorCubes": Task(ColorCubesConfig, ColorCubes, tuple({"level": level} for level in LEVELS)),
    "MortarMayhem": Task(MortarMayhemConfig, MortarMayhem, tuple({"view": view} for view in VIEWS)),
    "MysteryPath": Task(MysteryPathConfig, MysteryPath, tuple({"view": view} for view in VIEWS)),
    "GridMemoryMaze": Task(
        GridMemoryMazeConfig, GridMemoryMaze, tuple({"size": size} for size in SIZES)
    ),
}
