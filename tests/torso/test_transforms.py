"""Torsos under torch.func: ensembles, gradients of single rows; and torsos sent to processes."""

import pickle

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from mtxl_rl.torso import MemoryTransformer, SlotsConfig, TorsoConfig

KINDS = ["none", "delta", "linear", "agalite", "slots", "shared slots", "tokens"]


def torso_of(long_term: str) -> MemoryTransformer:
    sizes = {"width": 8, "num_layers": 2, "num_heads": 2, "window_length": 4, "segment_length": 4}
    decay = "fixed" if long_term == "linear" else "none"
    slots = SlotsConfig(is_shared=long_term == "shared slots")
    kind = "slots" if slots.is_shared else long_term
    return MemoryTransformer(TorsoConfig(**sizes, long_term=kind, decay=decay, slots=slots))


@pytest.mark.parametrize("long_term", KINDS)
def test_vmap_runs_an_ensemble_and_gives_the_gradients_of_each_row(long_term: str) -> None:
    torsos = [torso_of(long_term) for _ in range(3)]
    x, is_first = torch.randn(2, 10, 8), torch.rand(2, 10) < 0.2
    state = torsos[0].initial_state(2)

    weights, buffers = stack_module_state(torsos)
    together = vmap(lambda w, b: functional_call(torsos[0], (w, b), (x, state, is_first))[0])
    one_by_one = torch.stack([torso(x, state, is_first)[0] for torso in torsos])
    torch.testing.assert_close(together(weights, buffers), one_by_one)

    def loss(weights: dict[str, Tensor], x: Tensor, is_first: Tensor) -> Tensor:
        state = torsos[0].initial_state(len(x))
        return functional_call(torsos[0], weights, (x, state, is_first))[0].square().sum()

    first = {name: weight.detach() for name, weight in torsos[0].named_parameters()}
    of_all = grad(loss)(first, x, is_first)
    of_rows = vmap(grad(loss), in_dims=(None, 0, 0))(first, x[:, None], is_first[:, None])
    for name, gradient in of_all.items():
        torch.testing.assert_close(of_rows[name].sum(0), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("long_term", KINDS)
def test_a_torso_can_be_sent_to_another_process(long_term: str) -> None:
    torso = torso_of(long_term)
    received = pickle.loads(pickle.dumps(torso))
    x, is_first = torch.randn(2, 10, 8), torch.rand(2, 10) < 0.2
    expected, _ = torso(x, torso.initial_state(2), is_first)
    actual, _ = received(x, received.initial_state(2), is_first)
    torch.testing.assert_close(actual, expected)
