"""The processes of a data-parallel run, seen from one of them.

Every process holds `num_envs / size` consecutive environments and a replica of the policy. Sums
over processes make losses, statistics and gradients those of all environments together.
"""

import hashlib
import io
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]

LOST_SECONDS = 3.0
"""Seconds for which a process that lost another one waits before it raises an error, so that the
launcher finds the one that failed first. Meanwhile the remaining processes find the missing one."""


class LostProcessError(RuntimeError):
    """Raised when another process of the run has ended, or does not answer in time."""


@dataclass
class World:
    """One process among `size`; every method is a no-op in a run of one process."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """The processes among which operations run; None: all that are connected."""
    patient_group: dist.ProcessGroup | None = None
    """The same processes, for operations that wait without a limit of time."""
    meeting_group: dist.ProcessGroup | None = None
    """The same processes, which meet before each operation; None: they do not. NCCL needs it: the
    others wait for a missing process here, and not in the GPU, where no error names it."""
    store: Store | None = None
    """Where processes that lost another one report that they are not the missing one."""
    _waits: list[tuple[Any, Any]] = field(default_factory=list, repr=False)
    """Begin and end of each collective operation since `wait_seconds`, as `_now` returns them."""

    def rows(self, num_local: int) -> slice:
        """Global indices of this process's rows, `num_local` of which each process holds."""
        return slice(self.rank * num_local, (self.rank + 1) * num_local)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of `tensor` over the processes."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum of `tensor` over the processes."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def any(self, *flags: bool, device: torch.device) -> list[bool]:
        """Each flag as set in any process."""
        if self.size == 1:
            return list(flags)
        marks = torch.tensor(flags, dtype=torch.float32, device=device)
        return [bool(mark) for mark in self.max(marks)]

    def sum_gradients(self, parameters: Iterable[nn.Parameter], extra: Sequence[Tensor]) -> Tensor:
        """Sum the parameters' gradients over the processes, in place and as one flat tensor.

        Args:
            parameters: a parameter without a gradient gets one of zeros.
            extra: scalars that are summed in the same operation.

        Returns:
            The sums of `extra`.
        """
        scalars = torch.stack([scalar.float() for scalar in extra])
        if self.size == 1:
            return scalars
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [scalars])
        with self._collective(flat.device):
            dist.all_reduce(flat, group=self.group)
        parts = flat.split([*(gradient.numel() for gradient in gradients), len(scalars)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[-1]

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401
        """Every process's `item`, in the order of their ranks."""
        if self.size == 1:
            return [item]
        parts: list[Any] = [None] * self.size
        with self._collective(torch.device("cpu")):
            dist.all_gather_object(parts, _to_bytes(item), group=self.group)
        return [_from_bytes(part) for part in parts]

    def gather_to_first(self, item: Any) -> list[Any] | None:  # noqa: ANN401
        """Every process's `item` in process 0, in the order of their ranks; None in the others."""
        if self.size == 1:
            return [item]
        parts: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._collective(torch.device("cpu")):
            dist.gather_object(_to_bytes(item), parts, dst=0, group=self.group)
        return None if parts is None else [_from_bytes(part) for part in parts]

    def wait_for_first(self) -> None:
        """Wait until process 0 calls this too, without a limit of time.

        Raises:
            LostProcessError: process 0 has ended.
        """
        if self.size > 1:
            with self._collective(torch.device("cpu"), meets=False):
                dist.broadcast(torch.zeros(1), src=0, group=self.patient_group)

    def check_equal(self, items: Mapping[str, object], *, remedy: str) -> None:
        """Check that the named items are the same in all processes.

        Raises:
            RuntimeError: one is not; the message ends with `remedy`.
        """
        first, *others = self.gather(dict(items))
        for rank, other in enumerate(others, start=1):
            for name, item in first.items():
                if other.get(name) != item:
                    raise RuntimeError(
                        f"{name} is {item} in process 0 and {other.get(name)} in process {rank}; "
                        f"{remedy}"
                    )

    def wait_seconds(self) -> list[float]:
        """Each process's seconds in collective operations since the last call of this method.

        They are the time of the operations and the wait for the slowest process.
        """
        waits, self._waits = self._waits, []
        return self.gather(sum((_seconds(begin, end) for begin, end in waits), 0.0))

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:  # noqa: ANN401
        if self.size == 1:
            return tensor
        reduced = tensor.clone()
        with self._collective(tensor.device):
            dist.all_reduce(reduced, operation, group=self.group)
        return reduced

    @contextmanager
    def _collective(self, device: torch.device, *, meets: bool = True) -> Iterator[None]:
        """An operation of all processes, which fails where one of them is gone."""
        begin = _now(device)
        try:
            if meets and self.meeting_group is not None:
                dist.barrier(self.meeting_group)
            yield
        except RuntimeError as error:
            # Gloo's first sentence, without the place in its source.
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            message = f"lost another process of the run: {reason}{self._missing()}"
            raise LostProcessError(message) from error
        self._waits.append((begin, _now(device)))

    def _missing(self) -> str:
        """Name the processes that do not report within `LOST_SECONDS`, as the end of a message."""
        if dist.is_initialized():
            # Otherwise those that wait for this one notice it later. NCCL's own group would wait.
            dist.destroy_process_group(self.meeting_group)
        end, missing = time.monotonic() + LOST_SECONDS, list[str]()
        thread = threading.Thread(target=self._find_missing, args=[missing], daemon=True)
        thread.start()
        thread.join(LOST_SECONDS)
        if thread.is_alive():
            return "; the store, which the launcher or process 0 holds, does not answer"
        time.sleep(max(0.0, end - time.monotonic()))
        if not missing:
            return ""
        return f"; process {', '.join(missing)} of {self.size} does not answer"

    def _find_missing(self, missing: list[str]) -> None:
        """Report this process in the store; add the ranks that did not report to a list.

        It waits half of the time, because the process that holds the store ends after all of it.
        """
        if self.store is None:
            return
        reports = {str(rank): f"left/{rank}" for rank in range(self.size)}
        with suppress(RuntimeError):  # The store is gone.
            self.store.set(reports[str(self.rank)], "")
            time.sleep(LOST_SECONDS / 2)
            missing += [rank for rank, key in reports.items() if not self.store.check([key])]


def _to_bytes(item: Any) -> bytes:  # noqa: ANN401
    """`item` as bytes, by torch.save: a tensor's pickle does not cover unsigned dtypes."""
    buffer = io.BytesIO()
    torch.save(item, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> Any:  # noqa: ANN401
    return torch.load(io.BytesIO(content), weights_only=False)


def _now(device: torch.device) -> Any:  # noqa: ANN401
    """The time on the host; on a GPU, an event in the stream, without synchronisation."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Any, end: Any) -> float:  # noqa: ANN401
    """Seconds between two results of `_now`."""
    if isinstance(begin, float):
        return float(end - begin)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Moments(NamedTuple):
    """Mean and (biased) variance."""

    mean: Tensor
    variance: Tensor


def masked_moments(targets: Sequence[Tensor], mask: Tensor, world: World) -> list[Moments]:
    """Moments of each target where `mask` is set, over all processes; NaN where it is set nowhere.

    Targets [*mask.shape, k...] have moments [k...]. In two passes, in float64: the sum of squares
    alone would cancel for a large mean. Each pass is one operation for all targets.
    """
    axes = tuple(range(mask.ndim))
    excluded = [~mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)) for values in targets]
    wide = [
        values.double().masked_fill(where, 0)
        for values, where in zip(targets, excluded, strict=True)
    ]
    count, *sums = _sums([mask.sum().double(), *(values.sum(axes) for values in wide)], world)
    means = [total / count for total in sums]
    squares = [
        (values - mean).square().masked_fill(where, 0).sum(axes)
        for values, mean, where in zip(wide, means, excluded, strict=True)
    ]
    variances = [total / count for total in _sums(squares, world)]
    dtypes = [values.dtype if values.is_floating_point() else torch.float32 for values in targets]
    return [
        Moments(mean.to(dtype), variance.to(dtype))
        for mean, variance, dtype in zip(means, variances, dtypes, strict=True)
    ]


def _sums(tensors: Sequence[Tensor], world: World) -> list[Tensor]:
    """Each tensor's sum over the processes, in one operation."""
    if not tensors:
        return []
    flat = world.sum(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def concatenate_rows(parts: Sequence[Any]) -> Any:  # noqa: ANN401
    """Join trees of tensors [B, ...], one tree per process, along B; other leaves must be equal."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Mapping):
        return {key: concatenate_rows([part[key] for part in parts]) for key in first}
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    assert all(part == first for part in parts), parts
    return first


def select_rows(tree: Any, rows: slice, *, num_rows: int) -> Any:  # noqa: ANN401
    """The inverse of `concatenate_rows`: the rows of one process.

    Raises:
        RuntimeError: a tensor does not have `num_rows` rows.
    """
    if isinstance(tree, Mapping):
        return {key: select_rows(part, rows, num_rows=num_rows) for key, part in tree.items()}
    if not isinstance(tree, Tensor):
        return tree
    if len(tree) != num_rows:
        raise RuntimeError(f"the checkpoint has {len(tree)} environments, not {num_rows}")
    return tree[rows]
