"""The parts that all command lines share: typed options, `--help`, checked names, `hydra.main`.

A command is a function of one dataclass. The dataclass's fields are the options, and the fields'
docstrings are the descriptions that `--help` prints. Hydra composes the dataclass. `run_command`
checks names and values first, so that an error lists the options that exist.
"""

from mtxl_rl.command.hydra_runner import compose_command, readable_errors, run_command
from mtxl_rl.command.options import Command, Option, choices, options_of, print_help
from mtxl_rl.command.overrides import as_override, value_of

__all__ = [
    "Command",
    "Option",
    "as_override",
    "choices",
    "compose_command",
    "options_of",
    "print_help",
    "readable_errors",
    "run_command",
    "value_of",
]
