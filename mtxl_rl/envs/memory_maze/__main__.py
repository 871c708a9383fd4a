"""Commands: walk a maze yourself, let a policy walk, get the textures.

python -m mtxl_rl.envs.memory_maze play
python -m mtxl_rl.envs.memory_maze oracle --episodes 32
python -m mtxl_rl.envs.memory_maze explorer --memory-steps 32 64 128
python -m mtxl_rl.envs.memory_maze random --gif maze.gif
python -m mtxl_rl.envs.memory_maze textures
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtxl_rl.envs.memory_maze.spec import VARIANTS, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.texture_files import (
    download_textures,
    original_folder,
    unpack_textures,
)
from mtxl_rl.envs.names import check_choice


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; report an error that the user can fix in one line."""
    args = _parse(arguments)
    try:
        if args.command == "textures":
            _get_textures(args.wheel)
            return
        if args.variant:
            check_choice("--variant", args.variant, [name[1:] for name in VARIANTS if name])
        options = dict(VARIANTS[f"-{args.variant}" if args.variant else ""])
        config = MemoryMazeConfig(size=args.size, **options)  # type: ignore[arg-type]
        if args.command == "play":
            from mtxl_rl.envs.memory_maze.play import play

            play(config, seed=args.seed)
        elif args.gif is not None:
            from mtxl_rl.envs.memory_maze.play import write_gif

            write_gif(args.gif, config, policy=args.command, seed=args.seed, num_steps=args.steps)
            sys.stdout.write(f"{args.gif}\n")
        else:
            for memory_steps in args.memory_steps or [None]:
                _print_returns(
                    config,
                    policy=args.command,
                    seed=args.seed,
                    episodes=args.episodes,
                    memory_steps=memory_steps,
                )
    except (ImportError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mtxl_rl.envs.memory_maze",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=["play", "oracle", "explorer", "random", "textures"],
        help="play: walk with the arrow keys; oracle, explorer, random: print a policy's returns; "
        "textures: get the original's pictures",
    )
    parser.add_argument("--size", default="9x9", help="9x9, 11x11, 13x13, 15x15, ...")
    parser.add_argument("--variant", help="Vis, HD, Top, Oracle, 6CL, ...; None: the standard task")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mazes and of the policy")
    parser.add_argument("--episodes", type=int, default=32, help="number to average over")
    parser.add_argument("--gif", type=Path, help="write a video of the policy to this .gif instead")
    parser.add_argument("--steps", type=int, default=200, help="steps of the video")
    parser.add_argument(
        "--memory-steps",
        type=int,
        nargs="+",
        help="the explorer forgets what it saw more than this many steps ago; several: a table; "
        "None: it forgets nothing",
    )
    parser.add_argument(
        "--wheel", type=Path, help="unpack the textures of this wheel of labmaze; downloads nothing"
    )
    return parser.parse_args(arguments)


def _get_textures(wheel: Path | None) -> None:
    """Unpack the wheel, or download one unless the pictures are on this machine."""
    folder = unpack_textures(wheel) if wheel else original_folder() or download_textures()
    sys.stdout.write(f"Memory Maze's original textures are in {folder}\n")


def _print_returns(
    config: MemoryMazeConfig,
    *,
    policy: str,
    seed: int,
    episodes: int,
    memory_steps: int | None,
) -> None:
    from mtxl_rl.envs.memory_maze.policies import describe_returns, episode_returns

    returns = episode_returns(
        config, policy=policy, seed=seed, num_episodes=episodes, memory_steps=memory_steps
    )
    memory = "" if memory_steps is None else f", {memory_steps:4} steps of memory"
    print(  # noqa: T201
        f"{policy}{memory}, {config.size}, {len(returns)} episodes of "
        f"{config.steps_per_episode} steps: {describe_returns(returns)}"
    )


if __name__ == "__main__":
    main()
