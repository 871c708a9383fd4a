"""A sweep over the learning rate with Ray Tune: `python examples/ray_tune.py`.

Each trial is a training run in Ray Train, with `num_workers` workers that can be lost. It needs
`pip install 'mtxl_rl[ray]'`. Without arguments it trains T-maze for a few iterations per trial.
"""

import argparse
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from mtxl_rl.compose import compose_config
from mtxl_rl.runtime.ray_train import connect
from mtxl_rl.training.ray_trainer import ray_trainer

TINY = ["env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=16", "total_steps=8192"]


def trial(choice: dict[str, Any]) -> None:
    """Train with one learning rate; Tune receives the metrics of each checkpoint."""
    rate, folder = choice["learning_rate"], Path(choice["folder"])
    config = compose_config(
        [
            *choice["options"],
            f"ppo.learning_rate={rate}",
            f"run_dir={folder / f'learning_rate_{rate:g}'}",
        ]
    )
    ray_trainer(config, num_workers=choice["num_workers"], callbacks=[TuneReportCallback()]).fit()


def sweep(rates: list[float], options: list[str], *, folder: Path, num_workers: int) -> Any:  # noqa: ANN401
    """Train once with each learning rate; Ray Tune's result grid."""
    choices = {
        "learning_rate": tune.grid_search(rates),
        "options": options,
        "folder": str(folder.resolve()),
        "num_workers": num_workers,
    }
    # A trial waits for its workers, which take the CPUs. Ray wants it to take something: a byte.
    tuner = tune.Tuner(
        tune.with_resources(trial, {"memory": 1}),
        param_space=choices,
        tune_config=tune.TuneConfig(
            metric="charts/episodic_return", mode="max", max_concurrent_trials=1
        ),
        run_config=tune.RunConfig(storage_path=str(folder.resolve()), name="tune"),
    )
    return tuner.fit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/ray_tune"))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("options", nargs="*", default=TINY, help="options of mtxl_rl.train")
    arguments = parser.parse_args()
    connect()
    results = sweep(
        arguments.rates,
        arguments.options,
        folder=arguments.folder,
        num_workers=arguments.num_workers,
    )
    for result in results:
        print(
            f"learning rate {result.config['learning_rate']:g}: mean return "
            f"{result.metrics['charts/episodic_return']:.3f}"
        )
    best = results.get_best_result()
    print(f"best: {best.config['learning_rate']:g}, {best.metrics['checkpoint_path']}")
