"""Each long-term memory against its definition."""

import pytest
import torch
from torch import Tensor

from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.layer import Layer
from mtxl_rl.torso.long_term import LongTermMemory, build_memory
from mtxl_rl.torso.long_term.delta import UnitTriangularInverse, delta_rule
from mtxl_rl.torso.long_term.slots import Context, SlotMemory, retention_biases
from mtxl_rl.torso.long_term.tokens import TokenMemory
from mtxl_rl.torso.torso_config import SlotsConfig, TokensConfig


@pytest.mark.parametrize("decays", [False, True])
def test_the_chunkwise_delta_rule_equals_the_recursion(decays: bool) -> None:
    torch.manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(6, 33, 8).double(), dim=-1)
    value, strength = torch.randn(6, 33, 5).double(), torch.rand(6, 33).double()
    log_decay = -torch.rand(6, 33).double() * decays
    start = torch.randn(6, 8, 5).double()
    memory = start
    for t in range(33):
        memory = memory * log_decay[:, t].exp()[:, None, None]
        stored = torch.einsum("be,bev->bv", key[:, t], memory)
        change = strength[:, t, None] * (value[:, t] - stored)
        memory = memory + key[:, t, :, None] * change[:, None]
    keep, add = delta_rule(key, value, strength, log_decay)
    torch.testing.assert_close(keep @ start + add, memory, rtol=1e-12, atol=1e-12)


def test_the_triangular_inverse_and_its_gradient_use_the_lower_part_only() -> None:
    torch.manual_seed(0)
    lower = torch.randn(2, 7, 7).double().requires_grad_()
    expected = torch.linalg.inv(torch.eye(7).double() + lower.tril(-1))
    torch.testing.assert_close(UnitTriangularInverse.apply(lower), expected)
    assert torch.autograd.gradcheck(UnitTriangularInverse.apply, lower)


def test_a_write_of_full_strength_is_read_back_and_keeps_orthogonal_keys() -> None:
    key = torch.eye(4).double()[None, :2]
    value = torch.randn(1, 2, 4).double()
    keep, add = delta_rule(key, value, torch.ones(1, 2).double(), torch.zeros(1, 2).double())
    start = torch.randn(1, 4, 4).double()
    after = keep @ start + add
    torch.testing.assert_close(after[0, :2], value[0])
    torch.testing.assert_close(after[0, 2:], start[0, 2:])


def matrix(kind: str) -> LongTermMemory:
    """A matrix memory with random weights in float64, by the name of its kind and decay."""
    long_term, _, decay = kind.partition(" ")
    config = TorsoConfig(width=8, num_heads=2, long_term=long_term, decay=decay or "none")
    return build_memory(config).double()


MATRICES = ["delta none", "delta coupled", "delta free", "linear fixed", "linear free", "agalite"]


@pytest.mark.parametrize("kind", MATRICES)
def test_the_write_of_a_segment_equals_the_writes_of_its_valid_steps(kind: str) -> None:
    torch.manual_seed(0)
    memory = matrix(kind)
    steps = torch.randn(3, 1, 6, 8).double()
    start = torch.randn(3, *memory.memory_shape).double()
    for begin in (0, 4):
        valid = (torch.arange(6) >= begin).expand(3, 1, 6)
        written = memory.write(start, tuple(part[:, 0] for part in memory.encode(steps, valid)))
        by_step = start.clone()
        for t in range(begin, 6):
            memory.write_step(by_step, steps[:, 0, t])
        torch.testing.assert_close(written, by_step, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MATRICES)
def test_a_step_that_reads_no_version_reads_an_empty_memory(kind: str) -> None:
    torch.manual_seed(0)
    memory = matrix(kind)
    steps = torch.randn(2, 1, 3, 8).double()
    empty = torch.zeros(2, 1, *memory.memory_shape).double()
    full = torch.randn(2, 2, *memory.memory_shape).double()
    reads = torch.zeros(2, 1, 3, 2, dtype=torch.bool)
    torch.testing.assert_close(memory.read(steps, empty, None), memory.read(steps, full, reads))


@pytest.mark.parametrize("kind", MATRICES)
def test_each_step_reads_its_own_version(kind: str) -> None:
    torch.manual_seed(0)
    memory = matrix(kind)
    steps = torch.randn(2, 1, 2, 8).double()
    versions = torch.randn(2, 2, *memory.memory_shape).double()
    readout = memory.read(steps, versions, torch.eye(2).bool().expand(2, 1, 2, 2))
    for step in range(2):
        expected = memory.read(steps[:, :, step, None], versions[:, step, None], None)
        torch.testing.assert_close(readout[:, :, step, None], expected)


def test_agalite_is_its_papers_recurrence() -> None:
    torch.manual_seed(0)
    memory = matrix("agalite")
    features = memory.features
    x, later = torch.randn(5, 8).double(), torch.randn(1, 8).double()
    wide = features.wide(x).detach().view(5, 5, 2, 4)  # step, part, head, feature
    small = features.small(x).detach().view(5, 3, 2, 4)
    key, gamma, _, value, beta = wide.unbind(1)
    p_key, p_gamma, _ = small.unbind(1)
    for head in range(2):
        c, s = torch.zeros(16, 4).double(), torch.zeros(16).double()
        for t in range(5):
            g = torch.outer(p_gamma[t, head].sigmoid(), gamma[t, head].sigmoid()).flatten()
            b = beta[t, head].sigmoid()
            k = torch.outer(p_key[t, head].relu(), key[t, head].relu()).flatten()
            c = torch.outer(1 - g, 1 - b) * c + torch.outer(g * k, b * value[t, head])
            s = (1 - g) * s + g * k
        written = torch.zeros(1, *memory.memory_shape).double()
        for t in range(5):
            memory.write_step(written, x[t, None])
        torch.testing.assert_close(written[0, head], torch.cat([c, s[:, None]], 1))
        query = features.queries(later)[0, head].detach()
        readout = features.normalise(query @ written[0, head])
        torch.testing.assert_close(readout, query @ c / (query @ s + 1e-6))


def test_linear_attention_equals_its_quadratic_definition_for_any_split_of_the_keys() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 2, 7, 4).double(), 30 * torch.randn(3, 2, 11, 4).double()
    values = torch.randn(3, 2, 11, 5).double()
    quadratic = (queries.softmax(-1) @ keys.softmax(-2).mT) @ values
    torch.testing.assert_close(Context.of(keys, values).attend(queries), quadratic)
    parts = [Context.of(keys[..., part, :], values[..., part, :])
             for part in (slice(0, 3), slice(3, 11))]  # fmt: skip
    torch.testing.assert_close(parts[0].merge(parts[1]).attend(queries), quadratic)


def slot_memory(**options: object) -> SlotMemory:
    """Slots that two layers share, in float64."""
    torch.manual_seed(0)
    settings = SlotsConfig(num_slots=4, is_shared=True, **options)
    config = TorsoConfig(width=8, num_heads=2, long_term="slots", slots=settings)
    return SlotMemory(config).double()


def written(memory: SlotMemory, start: Tensor, *sources: Tensor) -> Tensor:
    return memory.write(
        start, tuple(part[:, 0] for part in memory.encode(torch.cat(sources, dim=2)))
    )


@pytest.mark.parametrize("cell", ["gru", "brc", "nbrc"])
def test_a_closed_gate_carries_slots_unchanged(cell: str) -> None:
    memory = slot_memory(cell=cell, write_iterations=3)
    torch.nn.init.constant_(memory.cell.bias, 60.0)
    start, sources = torch.randn(2, 4, 8).double(), torch.randn(2, 2, 1, 5, 8).double()
    after = start
    for _ in range(200):
        after = written(memory, after, *sources)
    torch.testing.assert_close(after, start)


def test_a_sink_is_one_more_key_whose_value_is_zero() -> None:
    keys, values, queries = torch.randn(3, 3, 2, 5, 4).double()
    sink = torch.randn(2, 4).double()
    readout = Context.of(keys, values).with_sink(sink).attend(queries)
    more_keys = torch.cat([keys, sink[:, None].expand(3, 2, 1, 4)], dim=2)
    more_values = torch.cat([values, torch.zeros(3, 2, 1, 4).double()], dim=2)
    torch.testing.assert_close(readout, Context.of(more_keys, more_values).attend(queries))


@pytest.mark.parametrize("cell", ["brc", "nbrc"])
def test_keys_below_the_sink_leave_bistable_slots_unchanged(cell: str) -> None:
    torch.manual_seed(0)
    memory = slot_memory(cell=cell)
    with torch.no_grad():
        memory.sink.fill_(1e3)
    before = 0.1 * torch.randn(2, 4, 8).double()
    after = written(memory, before, *torch.randn(2, 2, 1, 5, 8).double())
    # The cell computes tanh(a x) with a near 1, or keeps x where its gate is closed.
    assert (after - before).abs().max() < 0.02


def test_only_the_queries_identify_slots() -> None:
    memory = slot_memory()
    start, sources = torch.randn(2, 4, 8).double(), torch.randn(2, 2, 1, 5, 8).double()
    order = torch.tensor([2, 0, 3, 1])
    straight = written(memory, start, *sources)
    assert not torch.allclose(written(memory, start[:, order], *sources), straight[:, order])
    for weight in (memory.identity, memory.cell.bias):
        weight.data = weight.data[order]
    torch.testing.assert_close(written(memory, start[:, order], *sources), straight[:, order])


def test_a_shared_write_distinguishes_layers() -> None:
    memory = slot_memory()
    start, sources = torch.zeros(2, 4, 8).double(), torch.randn(2, 2, 1, 5, 8).double()
    once, swapped = written(memory, start, *sources), written(memory, start, *sources.flip(0))
    assert not torch.allclose(once, swapped)


def test_half_lives_spread_from_one_write_to_many() -> None:
    biases = retention_biases(5, max_half_life=81.0)
    half_lives = 1 / -torch.sigmoid(biases).log2()
    torch.testing.assert_close(half_lives, torch.tensor([1.0, 3.0, 9.0, 27.0, 81.0]), rtol=1e-4,
                               atol=0)  # fmt: skip


def test_detached_slots_stop_gradients_to_the_segment_but_not_to_the_slots() -> None:
    for detach, reaches in ((False, True), (True, False)):
        memory = slot_memory(detach_inputs=detach)
        start = torch.randn(2, 4, 8).double().requires_grad_()
        sources = torch.randn(2, 2, 1, 5, 8).double().requires_grad_()
        written(memory, start, *sources).sum().backward()
        assert (sources.grad is not None) == reaches
        assert start.grad is not None
        assert start.grad.abs().max() > 0
        assert memory.depth.grad is not None  # It identifies the layer and is not an input.
        assert memory.depth.grad.abs().max() > 0


def test_tokens_are_updated_by_the_layers_weights_or_by_separate_ones() -> None:
    counts = []
    for separate in (False, True):
        tokens = TokensConfig(num_tokens=3, separate_control=separate)
        layer = Layer(TorsoConfig(width=8, num_heads=2, long_term="tokens", tokens=tokens),
                      has_memory=True)  # fmt: skip
        assert isinstance(layer.memory, TokenMemory)
        start, segment = torch.zeros(2, 3, 8), torch.randn(2, 1, 5, 8)
        encoded = tuple(part[:, 0] for part in layer.memory.encode(segment))
        layer.memory.write(start, encoded).sum().backward()
        assert (layer.attention.query.weight.grad is None) == separate
        counts.append(sum(weight.numel() for weight in layer.parameters()))
    assert counts[0] < counts[1]


def test_in_a_bottleneck_a_step_sees_no_other_step_of_its_segment() -> None:
    torch.manual_seed(0)
    tokens = TokensConfig(bottleneck=True)
    config = TorsoConfig(width=8, num_heads=2, window_length=4, segment_length=4,
                         long_term="tokens", tokens=tokens)  # fmt: skip
    torso = build_torso(config).double()
    x, is_first = torch.randn(1, 8, 8).double(), torch.zeros(1, 8, dtype=torch.bool)
    y, _ = torso(x, torso.initial_state(1), is_first)
    other = x.clone()
    other[:, 0] = torch.randn(8).double()
    z, _ = torso(other, torso.initial_state(1), is_first)
    torch.testing.assert_close(y[:, 1:4], z[:, 1:4])
    assert (y[:, 4:] - z[:, 4:]).abs().amax(-1).min() > 1e-9
