"""Callbacks of a training run: they receive what happens, and can stop the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtxl_rl.agents.actor import Episode

Metrics = Mapping[str, float | int]
_NAMES = ("on_iteration", "on_episode", "on_checkpoint")


class StopTraining(Exception):  # noqa: N818 - a request, as StopIteration is.
    """Raised by a callback: the run stops after this iteration is saved.

    The message is the outcome in the run's record.
    """


class Callback:
    """Base class of callbacks; every method does nothing.

    A callback may also be any other object that has one or more of these methods. With several
    processes, only the first one calls them.
    """

    def on_iteration(self, metrics: Metrics) -> None:
        """Called after each iteration, with "step" and the metrics of this row."""

    def on_episode(self, episode: Episode) -> None:
        """Called for each training episode that ended in an iteration, before `on_iteration`."""

    def on_checkpoint(self, path: Path, metrics: Metrics) -> None:
        """Called after a checkpoint is saved, with the newest metrics."""


class CallbackList:
    """Calls the callbacks one after another, and notes a request to stop.

    Args:
        callbacks: `Callback`, or any objects with some of its methods.

    Raises:
        ValueError: an object has none of the methods, or one with an unknown name.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = callbacks
        self.stop_reason = ""
        """Why a callback stops the run; empty if none does."""
        for callback in callbacks:
            names = [name for name in dir(callback) if name.startswith("on_")]
            unknown = [name for name in names if name not in _NAMES]
            if unknown or not names:
                problem = f"has {', '.join(unknown)}" if unknown else "has no such method"
                raise ValueError(
                    f"the callback {callback!r} {problem}; a callback has one or more of "
                    f"{', '.join(_NAMES)}"
                )

    def on_iteration(self, metrics: Metrics, *, episodes: Sequence[Episode], step: int) -> None:
        """Pass on the episodes of an iteration, then its metrics."""
        for episode in episodes:
            self._call("on_episode", episode)
        self._call("on_iteration", {"step": step, **metrics})

    def on_checkpoint(self, path: Path, metrics: Metrics, *, step: int) -> None:
        """Pass on a checkpoint."""
        self._call("on_checkpoint", path, {"step": step, **metrics})

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        for callback in self._callbacks:
            method = getattr(callback, name, None)
            try:
                if method is not None:
                    method(*arguments)
            except StopTraining as stop:
                self.stop_reason = str(stop) or "a callback stopped the run"
