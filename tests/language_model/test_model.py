"""The language model: the call of 2020, equal logits where they should be, faults repaired."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtxl_rl import AutoregressiveWrapper, CausalLM, MemoryTransformerXL
from mtxl_rl.language_model.autoregressive_wrapper import top_k, top_p
from mtxl_rl.language_model.causal_lm import sample

MEMORIES = ("slots", "delta", "linear", "agalite", "tokens", "none")


def a_model(**changes: object) -> MemoryTransformerXL:
    torch.manual_seed(0)
    arguments = {"num_tokens": 11, "dim": 16, "heads": 2, "depth": 3, "seq_len": 6, "lmem_len": 4}
    return MemoryTransformerXL(**(arguments | changes)).double()


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def test_the_example_of_2020_works_as_written() -> None:
    model = MemoryTransformerXL(
        num_tokens=200, dim=64, heads=8, depth=8, seq_len=32, mem_len=16, lmem_len=16,
        mem_write_iters=2, memory_layers=[6, 7, 8], num_mem_kv=8,
    )  # fmt: skip
    first = torch.randint(0, 200, (1, 32))
    logits, memories = model(first)
    assert logits.shape == (1, 32, 200)
    second, after = model(torch.randint(0, 200, (1, 32)), memories=memories)
    assert second.shape == (1, 32, 200)
    assert not torch.equal(after.long_term, memories.long_term)


def test_every_argument_of_0_1_0_is_taken() -> None:
    model = a_model(
        emb_dim=8, gru_gated_residual=True, mogrify_gru=True, attn_dropout=0.1, ff_glu=True,
        ff_dropout=0.1, attn_layer_dropout=0.1, one_kv_head=True, num_mem_kv=2, mem_len=8,
    )  # fmt: skip
    tokens = some_tokens(2, 6)
    output, _ = model(tokens, mask=torch.ones(2, 6, dtype=torch.bool), detach_lmem=True)
    assert not torch.equal(output, model(tokens)[0])  # dropout while training
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


class NoNorm(nn.LayerNorm):
    """The package of 2020 ends without a norm."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x


def equal_models(*, is_gated: bool, has_glu: bool) -> tuple[nn.Module, MemoryTransformerXL]:
    """The package's model, and ours without long-term memory, with the same parameters."""
    package = pytest.importorskip("memory_transformer_xl")
    sizes = {"num_tokens": 11, "dim": 32, "heads": 4, "depth": 3, "seq_len": 16,
             "gru_gated_residual": is_gated, "ff_glu": has_glu}  # fmt: skip
    torch.manual_seed(0)
    original = package.MemoryTransformerXL(**sizes)
    ours = MemoryTransformerXL(**sizes, long_term="none", position="learned")
    ours.torso.norm = NoNorm(32)
    ours.token_emb.load_state_dict(original.token_emb.state_dict())
    ours.to_logits.load_state_dict(original.to_logits.state_dict())
    nn.init.normal_(original.pos_emb)
    for n, layer in enumerate(ours.torso.layers):
        copy_attention(original.attn_layers[n], layer, is_gated=is_gated)
        # Their row of distance 0 is the last, where theirs reads dim + seq_len of the table's rows.
        layer.attention.position.table.data.copy_(original.pos_emb[:, -17:])
        copy_feedforward(original.ff_layers[n], layer.feedforward, is_gated=is_gated)
    return original, ours


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_glu", [True, False])
def test_the_first_segment_equals_the_package_of_2020(is_gated: bool, has_glu: bool) -> None:
    original, ours = equal_models(is_gated=is_gated, has_glu=has_glu)
    tokens = torch.randint(0, 11, (3, 16))
    expected, _ = original(tokens)
    logits, _ = ours(tokens)
    assert expected.std() > 0.1
    assert torch.allclose(logits, expected, atol=1e-5)


def package_wrapper(net: nn.Module) -> nn.Module:
    from memory_transformer_xl.autoregressive_wrapper import AutoregressiveWrapper as Original

    wrapper: nn.Module = Original(net)
    return wrapper


@pytest.mark.parametrize("max_batch_size", [None, 2, 4])
def test_the_wrapper_yields_the_losses_of_the_package(max_batch_size: int | None) -> None:
    original, ours = equal_models(is_gated=True, has_glu=False)
    tokens = some_tokens(3, 17)
    tokens[0, 12:] = -100
    tokens[0, 12:-1] = 3  # Only the last target is left out: inputs must be tokens.
    options = {"max_batch_size": max_batch_size, "return_loss": True}
    expected = list(package_wrapper(original)(tokens, **options))
    losses = list(AutoregressiveWrapper(ours)(tokens, **options))
    assert [batch.is_last_batch for batch in losses] == [batch.is_last_batch for batch in expected]
    for batch, reference in zip(losses, expected, strict=True):
        assert batch.loss.item() == pytest.approx(reference.loss.item(), abs=1e-5)


@pytest.mark.parametrize("num_tokens", [2, 16, 17, 18, 40])
@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_the_wrapper_has_the_packages_counts(num_tokens: int, max_batch_size: int | None) -> None:
    package = pytest.importorskip("memory_transformer_xl")
    sizes = {"num_tokens": 11, "dim": 16, "heads": 2, "depth": 2, "seq_len": 16, "lmem_len": 4}
    original = package_wrapper(package.MemoryTransformerXL(**sizes))
    wrapper = AutoregressiveWrapper(MemoryTransformerXL(**sizes))
    tokens = some_tokens(3, num_tokens)
    options = {"max_batch_size": max_batch_size, "return_loss": True, "truncate_every": 2}
    expected = [is_last for _, is_last in original(tokens, **options)]
    assert [is_last for _, is_last in wrapper(tokens, **options)] == expected
    assert wrapper(tokens[:, :16])[0].shape == (3, min(16, num_tokens), 11)


@pytest.mark.training
def test_a_training_script_for_the_package_runs() -> None:
    net = a_model().float()
    wrapper = AutoregressiveWrapper(net, ignore_index=-100, pad_value=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    texts = [some_tokens(20, seed=1), some_tokens(15, seed=2), some_tokens(19, seed=3)]
    means = []
    for _ in range(30):
        losses = []
        for loss, is_last in wrapper(texts, max_batch_size=2, return_loss=True, truncate_every=2):
            loss.backward(retain_graph=True)
            losses.append(loss.item())
            if is_last:  # An optimiser step between segments, as in the package's example.
                optimizer.step()
                optimizer.zero_grad()
        means.append(sum(losses) / len(losses))
    assert len(losses) == 4 * 2  # 19 inputs in segments of 6, 3 rows in parts of 2
    assert means[-1] < 0.6 * means[0]
    generated = wrapper.generate(texts[0][:5], 12, temperature=0.8, filter_thres=0.9)
    assert generated.shape == (12,)
    assert wrapper.generate(torch.stack([texts[0][:9], texts[2][:9]]), 7).shape == (2, 7)
    assert wrapper(texts)[0].shape == (3, 20, 11)


def test_losses_of_all_segments_can_be_propagated_together() -> None:
    tokens = some_tokens(2, 19)
    by_segment, summed = a_model(), a_model()
    for loss, _ in AutoregressiveWrapper(by_segment)(tokens, return_loss=True):
        loss.backward(retain_graph=True)
    sum(loss for loss, _ in AutoregressiveWrapper(summed)(tokens, return_loss=True)).backward()
    for parameter, reference in zip(by_segment.parameters(), summed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad)


def test_a_mask_may_be_as_long_as_the_tokens_or_one_shorter() -> None:
    wrapper = AutoregressiveWrapper(a_model().eval())
    tokens, mask = some_tokens(2, 13), torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = False
    expected = [loss for loss, _ in wrapper(tokens, return_loss=True, mask=mask[:, :-1])]
    losses = [loss for loss, _ in wrapper(tokens, return_loss=True, mask=mask)]
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert not torch.equal(losses[-1], list(wrapper(tokens, return_loss=True))[-1].loss)


@pytest.mark.parametrize("start", [(3,), (2, 3), (15,)])
def test_generation_returns_the_new_tokens_in_the_rank_of_the_start(start: tuple[int, ...]) -> None:
    wrapper = AutoregressiveWrapper(a_model())
    tokens = some_tokens(*start)
    generated = wrapper.generate(tokens, 5)
    assert generated.shape == (*start[:-1], 5)
    # With one token left by the filter, it is the most probable continuation.
    greedy = wrapper.generate(tokens, 5, filter_thres=0.99)
    batch = tokens if tokens.ndim == 2 else tokens[None]
    expected, _ = CausalLM(wrapper.net).generate(batch, 5, temperature=0.0)
    assert torch.equal(greedy.reshape(-1, 5), expected)


def test_generation_ends_where_every_row_draws_the_end_token() -> None:
    def only(logits: Tensor, thres: float) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor([4]), thres)

    wrapper = AutoregressiveWrapper(a_model())
    start = some_tokens(2, 3)
    generated = wrapper.generate(start, 9, eos_token=4, filter_logits_fn=only, filter_thres=0.5)
    assert generated.tolist() == [[4], [4]]
    assert wrapper.generate(start, 3, eos_token=5, filter_logits_fn=only).tolist() == [[4] * 3] * 2


def test_filters_keep_what_those_of_the_package_keep() -> None:
    pytest.importorskip("memory_transformer_xl")
    from memory_transformer_xl import autoregressive_wrapper as original

    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    for thres in (0.1, 0.5, 0.9):
        assert torch.equal(top_k(logits, thres), original.top_k(logits, thres))
        assert torch.equal(top_p(logits, thres), original.top_p(logits, thres))


def copy_gate(original: nn.Module, ours: nn.Module) -> None:
    """One bias here, that of c; theirs has five, of which the rest are zeroed."""
    for linear in (original.Ua, original.Wa, original.U):
        nn.init.zeros_(linear.bias)
    ours.from_output.weight.data.copy_(
        torch.cat([original.Ua.weight, original.Uc.weight, original.U.weight])
    )
    ours.from_stream.weight.data.copy_(torch.cat([original.Wa.weight, original.Wc.weight]))
    ours.bias.data.copy_(original.Uc.bias + original.Wc.bias)


def copy_attention(original: nn.Module, ours: nn.Module, *, is_gated: bool) -> None:
    normed = original.fn
    nn.init.zeros_(normed.fn.to_out.bias)  # ours has none
    ours.norm.load_state_dict(normed.norm.state_dict())
    ours.attention.query.load_state_dict(normed.fn.to_q.state_dict())
    ours.attention.key_value.load_state_dict(normed.fn.to_kv.state_dict())
    ours.attention.output.weight.data.copy_(normed.fn.to_out.weight)
    if is_gated:
        copy_gate(original.gru, ours.attention_gate)


def copy_feedforward(original: nn.Module, ours: nn.Module, *, is_gated: bool) -> None:
    normed = original.fn
    ours.norm.load_state_dict(normed.norm.state_dict())
    ours.expand.load_state_dict(normed.fn.w1.state_dict())
    ours.contract.load_state_dict(normed.fn.w2.state_dict())
    if is_gated:
        copy_gate(original.gru, ours.gate)


def test_short_calls_update_the_memories_where_those_of_2020_never_did() -> None:
    package = pytest.importorskip("memory_transformer_xl")
    original = package.MemoryTransformerXL(num_tokens=11, dim=16, heads=2, depth=1, seq_len=6)
    memories = None
    for token in some_tokens(1, 12).split(1, dim=1):
        _, memories = original(token, memories=memories)
    assert memories.long.numel() == memories.short.numel() == 0
    model, memories = a_model(), None
    for token in some_tokens(1, 12).split(1, dim=1):
        _, memories = model(token, memories=memories)
    assert memories.long_term.abs().sum() > 0


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(MEMORIES), st.integers(1, 9), st.integers(1, 15), st.integers(0, 99))
@pytest.mark.training
def test_generation_leaves_the_memories_of_training(
    long_term: str, prompt: int, length: int, seed: int
) -> None:
    wrapper = CausalLM(a_model(long_term=long_term))
    start = some_tokens(2, prompt, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    drawn, memories = wrapper.generate(start, length, generator=generator)
    assert drawn.shape == (2, length)
    read = torch.cat([start, drawn], dim=1)[:, :-1]
    _, expected = wrapper.net(read)
    for memory, field in zip(memories, expected, strict=True):
        assert torch.allclose(memory.double(), field.double(), atol=1e-9)


def test_greedy_generation_equals_the_model_on_the_whole_text() -> None:
    wrapper = CausalLM(a_model())
    start = some_tokens(2, 3)
    drawn, _ = wrapper.generate(start, 14, temperature=0.0)
    logits, _ = wrapper.net(torch.cat([start, drawn], dim=1))
    assert torch.equal(logits[:, 2:-1].argmax(-1), drawn)


def test_an_end_token_ends_a_row_and_then_the_text() -> None:
    wrapper = CausalLM(a_model())
    drawn, _ = wrapper.generate(some_tokens(4, 3), 200, eos_token=5, generator=torch.Generator())
    assert drawn.shape[1] < 200
    for row in drawn.tolist():
        assert set(row[row.index(5) :]) == {5}


@pytest.mark.parametrize("long_term", ["slots", "delta"])
def test_padding_is_neither_seen_nor_remembered(long_term: str) -> None:
    model = a_model(long_term=long_term)
    tokens = some_tokens(3, 15)
    mask = torch.ones(3, 15, dtype=torch.bool)
    mask[0, 9:], mask[1, :4], mask[2, 3:5] = False, False, False
    logits, memories = model(tokens, mask=mask)
    for row in range(3):
        kept = tokens[row : row + 1, mask[row]]
        alone, state = model(kept)
        assert torch.allclose(logits[row, mask[row]], alone[0])
        for memory, field in zip(memories.rows([row]), state, strict=True):
            assert torch.allclose(memory.double(), field.double())
    assert (logits[~mask] == 0).all()


def test_segments_carry_memories_and_cut_gradients() -> None:
    model = a_model(long_term="delta")
    wrapper = CausalLM(model)
    tokens = some_tokens(2, 25)
    whole, expected = wrapper(tokens)
    losses = []
    for loss, memories in wrapper.segments(tokens, truncate_every=2):
        losses.append(loss)
        assert not any(field.requires_grad for field in memories)
    assert torch.allclose(torch.stack(losses).mean(), whole)  # two parts of 12 targets each
    assert torch.allclose(memories.long_term, expected.long_term)


def test_where_no_target_counts_the_loss_is_zero_and_moves_nothing() -> None:
    model = a_model(long_term="delta")
    wrapper = CausalLM(model)
    for kept in (1, 0):  # the first token, or padding alone
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[:, :kept] = True
        loss, _ = wrapper(some_tokens(2, 9), mask=mask)
        assert float(loss.detach()) == 0
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_generation_leaves_every_module_in_its_mode() -> None:
    model = a_model(long_term="delta").train()
    model.token_emb.eval()  # as who fine-tunes all but the embedding has it
    CausalLM(model).generate(some_tokens(1, 3), 2)
    assert model.training
    assert model.torso.training
    assert not model.token_emb.training


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.floats(0.05, 1.0))
def test_draws_come_from_the_most_probable_tokens(seed: int, top_k: int, top_p: float) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(1, 11).expand(300, 11)
    probabilities, order = logits[0].softmax(-1).sort(descending=True)
    drawn = set(sample(logits, top_k=top_k).tolist())
    assert drawn <= set(order[:top_k].tolist())
    fewest = int((probabilities.cumsum(0) < top_p - 1e-6).sum()) + 1
    assert set(sample(logits, top_p=top_p).tolist()) <= set(order[:fewest].tolist())


def test_sampling_errors_name_the_legal_range() -> None:
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            sample(torch.zeros(1, 3), **wrong)


@pytest.mark.unchecked
def test_calls_that_do_not_fit_are_refused_in_one_sentence() -> None:
    net = MemoryTransformerXL(num_tokens=11, dim=8, heads=2, depth=1, seq_len=4, lmem_len=2)
    text = CausalLM(net)
    tokens, padded = torch.randint(0, 11, (2, 5)), torch.ones(2, 4, dtype=torch.bool)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("tokens is torch.int64 [5]", lambda: net(tokens[0])),
        ("tokens is torch.float32 [2, 5]", lambda: net(tokens.float())),
        ("tokens is a list", lambda: net([[1, 2]])),
        ("shape [2, 0], but there must be a row, and each row needs 1", lambda: net(tokens[:, :0])),
        ("shape [0, 5], but there must be a row", lambda: net(tokens[:0])),
        ("each row needs 2 or more", lambda: text(tokens[:, :1])),
        ("token 12 is not one of the model's, 0 .. 10", lambda: text.generate(tokens * 0 + 12, 3)),
        ("token -1 is not", lambda: AutoregressiveWrapper(net).generate(tokens * 0 - 1, 3)),
        ("takes torch.float32 [1, T, 8]", lambda: net(tokens, net.initial_memories(1))),
        ("mask is torch.bool [2, 4]", lambda: net(tokens, mask=padded)),
        ("mask is torch.bool [2, 4]", lambda: text(tokens, mask=padded)),
        ("truncate_every=0 must be", lambda: list(text.segments(tokens, truncate_every=0))),
        ("length=0 must be", lambda: text.generate(tokens, 0)),
        ("tokens has the shape [2, 0]", lambda: text.generate(tokens[:, :0], 3)),
        ("eos_token=11 must be a token, 0 .. 10", lambda: text.generate(tokens, 3, eos_token=11)),
        ("temperature=nan must be", lambda: text.generate(tokens, 3, temperature=float("nan"))),
        ("num_tokens=0 must be", lambda: MemoryTransformerXL(0, 8, 4, 1)),
    ]
    for message, call in calls:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_may_have_any_dtype(dtype: torch.dtype) -> None:
    net = MemoryTransformerXL(num_tokens=11, dim=8, heads=2, depth=1, seq_len=4, lmem_len=2)
    tokens = torch.randint(0, 11, (2, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for call in (net, CausalLM(net)):
        output, expected = (
            call(tokens, mask=as_dtype)[0] for as_dtype in (mask.to(dtype), mask.bool())
        )
        assert torch.equal(output, expected)
