"""The public names of each module: adding, renaming or removing one changes this list.

A change belongs in CHANGELOG.md, under Added, Changed or Removed.
"""

import ast
from pathlib import Path

import pytest

import mtxl_rl
from mtxl_rl import torso

ROOT = Path(__file__).parents[1]
NAMES = {
    "mtxl_rl": [
        "Agent", "AutoregressiveWrapper", "Cache", "Callback", "CausalLM", "ExportedPolicy",
        "MemoryState", "MemoryTransformer", "MemoryTransformerXL", "SlotsConfig", "StopTraining",
        "SublayersConfig", "TokensConfig", "TorsoConfig", "TrainedRun", "build_torso",
        "load_torso", "match_parameters", "save_torso", "train",
    ],
    "mtxl_rl.torso": [
        "Cache", "DecodeCache", "Diagnostics", "MemoryState", "MemoryTransformer", "SlotsConfig",
        "SublayersConfig", "TokensConfig", "Torso", "TorsoConfig", "build_torso",
        "count_parameters", "load_torso", "match_parameters", "save_torso", "window_mask",
    ],
    "mtxl_rl.train": ["main", "train"],
    "mtxl_rl.evaluate": ["evidence", "main", "run"],
    "mtxl_rl.evaluation.ablations": ["Observer", "Probed", "evaluate_ablations"],
    "mtxl_rl.play": [
        "PlayConfig", "Player", "action_sampler", "main", "make_player", "play_episodes", "players",
        "run",
    ],
    "mtxl_rl.get_textures": ["TexturesConfig", "main", "run"],
    "mtxl_rl.evaluation.episode_table": ["show_episodes"],
    "mtxl_rl.evaluation.evaluate_config": [
        "EvaluateConfig", "PolicyOverrides", "TorsoOverrides",
    ],
    "mtxl_rl.train_lm": ["main"],
    "mtxl_rl.language_model.saved_model": [
        "Reading", "load_checkpoint", "save_checkpoint", "save_config",
    ],
    "mtxl_rl.language_model.text": ["is_answer", "read_text", "recall_text", "rows_of"],
    "mtxl_rl.language_model.train_config": ["TrainLMConfig"],
    "mtxl_rl.language_model.character_trainer": ["evaluate", "generate", "run_until_signal"],
    "mtxl_rl.training.run": ["Run", "make_teacher"],
    "mtxl_rl.training.trainer": ["check_start", "new_run_dir", "run_until_signal"],
    "mtxl_rl.training.ray_trainer": ["ray_trainer", "train_with_ray"],
    "mtxl_rl.training.trained_run": ["TrainedRun"],
    "mtxl_rl.training.callbacks": ["Callback", "CallbackList", "Metrics", "StopTraining"],
    "mtxl_rl.agent": ["Agent", "AgentCache"],
    "mtxl_rl.agents.actor": ["Actor", "Episode", "ended_episodes"],
    "mtxl_rl.agents.collector": ["Collector"],
    "mtxl_rl.agents.stagger": ["Stagger"],
    "mtxl_rl.agents.vector_env": ["VectorEnv"],
    "mtxl_rl.agents.policy": ["Policy", "PolicyConfig", "PolicyOutputs"],
    "mtxl_rl.agents.ppo": ["LossWeights", "NonFiniteLossError", "PPO", "Targets"],
    "mtxl_rl.agents.ppo_config": ["PPOConfig"],
    "mtxl_rl.agents.ppo_loss": ["ppo_loss"],
    "mtxl_rl.agents.privileged": [
        "AuxiliaryConfig", "CriticConfig", "ObservationGroups", "PrivilegedCritic",
        "observation_groups",
    ],
    "mtxl_rl.agents.rollout": [
        "Rollout", "RolloutShape", "Spans", "random_minibatches",
    ],
    "mtxl_rl.agents.teacher": [
        "EnvTeacher", "PolicyTeacher", "Teacher", "TeacherConfig", "imitation_loss",
        "led_environments", "teacher_metrics",
    ],
    "mtxl_rl.envs.registry": [
        "EnvConfig", "EnvEntry", "env_entry", "evaluation_env", "make_vector_env", "stream_seed",
        "with_teacher",
    ],
    "mtxl_rl.compose": [
        "compose_config", "device_overrides", "env_class", "env_name", "options_without_effect",
        "preset_options", "register_schemas", "torso_preset", "train_command", "values",
    ],
    "mtxl_rl.config": ["TrainConfig"],
    "mtxl_rl.config_files": [
        "Config", "config_from_dict", "config_to_dict", "from_document", "load_config",
        "read_yaml", "save_config",
    ],
    "mtxl_rl.evaluation.drawing": [
        "Panel", "draw_episode_starts", "draw_heatmap", "draw_panel", "draw_rewards",
        "mean_over_heads", "memory_panels", "require_drawing", "try_write",
    ],
    "mtxl_rl.evaluation.recording": ["Recording"],
    "mtxl_rl.evaluation.timeline": ["write_timeline"],
    "mtxl_rl.evaluation.video": ["write_video"],
    "mtxl_rl.command.hydra_runner": [
        "compose_command", "fresh_hydra", "readable_errors", "run_command",
    ],
    "mtxl_rl.command.options": [
        "Command", "Option", "choices", "default_text", "field_docs", "options_of", "print_help",
    ],
    "mtxl_rl.command.overrides": [
        "as_override", "check_overrides", "quote", "split_arguments", "value_of",
    ],
    "mtxl_rl.integrations.flat_torso": ["FlatTorso"],
    "mtxl_rl.integrations.rllib": ["TorsoCatalog", "TorsoEncoder", "TorsoEncoderConfig"],
    "mtxl_rl.integrations.rsl_rl": ["TorsoMemory", "TorsoModel"],
    "mtxl_rl.integrations.sb3": [
        "CnnTorsoPolicy", "Core", "MlpTorsoPolicy", "MultiInputTorsoPolicy", "TorsoPolicy",
    ],
    "mtxl_rl.integrations.torchrl": ["TorsoModule"],
    "mtxl_rl.runtime.devices": ["find_device", "local_device", "world_size"],
    "mtxl_rl.runtime.exported_step": [
        "ExportedStep", "FunctionalStep", "NarrowLinear", "export_policy", "narrowed", "prefill",
    ],
    "mtxl_rl.tracking.metrics": ["EpisodeWindow", "MetricsLogger", "Row", "read_rows"],
}  # fmt: skip


def defined_names(module: str) -> list[str]:
    """Classes, functions and aliases that a module defines, read without importing it."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    names = list[str]()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            names += [name for name in targets if not name.isupper()]  # Without constants.
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("module", [name for name in NAMES if name.count(".") > 0])
def test_a_modules_public_names_are_listed(module: str) -> None:
    names = torso.__all__ if module == "mtxl_rl.torso" else defined_names(module)
    assert sorted(names) == NAMES[module]


def test_the_packages_names_are_listed_and_load() -> None:
    assert sorted(mtxl_rl.__all__) == NAMES["mtxl_rl"]
    for name in NAMES["mtxl_rl"]:
        assert getattr(mtxl_rl, name) is not None
        assert name in dir(mtxl_rl)
