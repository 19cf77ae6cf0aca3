"""Windows score each token once; perplexity and KL against a loop over single positions."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from resprout.tasks.evaluate.perplexity import Score, score, windows


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_windows_without_overlap_skip_each_first_token() -> None:
    # 10 tokens, windows of 4: [0..3] [4..7] [8 9]; the first of each has no context.
    found = windows(list(range(10)), 4, 4, None)
    assert [part.ids for part in found] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert [part.ids[part.first :] for part in found] == [(1, 2, 3), (5, 6, 7), (9,)]


def test_windows_with_bos_score_every_token() -> None:
    found = windows(list(range(10)), 4, 4, 63)
    assert all(part.ids[0] == 63 for part in found)
    assert [token for part in found for token in part.ids[part.first :]] == list(range(10))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_overlapping_windows_score_each_token_once(stride: int) -> None:
    found = windows(list(range(11)), 4, stride, None)
    assert [token for part in found for token in part.ids[part.first :]] == list(range(1, 11))


def test_a_last_window_of_one_token_scores_nothing() -> None:
    assert [part.ids for part in windows(list(range(9)), 4, 4, None)] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_perplexity_and_kl_equal_a_loop_over_positions() -> None:
    model, dense = tiny(0), tiny(1)
    ids = torch.randint(0, 64, (53,), generator=torch.Generator().manual_seed(3)).tolist()
    parts = windows(ids, 16, 8, None)
    found = score(model, parts, dense)

    nll, kl, tokens = 0.0, 0.0, 0
    with torch.no_grad():
        for part in parts:
            for position in range(part.first, len(part.ids)):
                before = torch.tensor([part.ids[:position]])
                p = model(before).logits[0, -1].double().softmax(-1)
                q = dense(before).logits[0, -1].double().softmax(-1)
                nll -= math.log(p[part.ids[position]])
                kl += float((q * (q / p).log()).sum())
                tokens += 1
    assert found.tokens == tokens == 52
    assert found.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found.mean_kl == pytest.approx(kl / tokens, rel=1e-4)


def test_a_model_does_not_diverge_from_itself_and_kl_stops_at_its_limit() -> None:
    model = tiny(0)
    parts = windows(list(range(64)), 8, 8, None)
    found = score(model, parts, model, kl_tokens=10)
    assert found.mean_kl == pytest.approx(0.0, abs=1e-6)
    assert (found.kl_tokens, found.tokens) == (10, 56)


def test_kl_is_that_of_the_first_tokens_also_where_the_limit_cuts_a_batch() -> None:
    model, other = tiny(0), tiny(1)
    parts = windows([index * 7 % 64 for index in range(64 * 40)], 64, 64, None)
    limit = 63 * 33 + 5  # into the 34th window of 63 scored tokens; a batch is 32 windows
    limited = score(model, parts, other, kl_tokens=limit)
    whole = score(model, parts[:33], other)
    rest = score(model, [parts[33]], other, kl_tokens=5)
    assert (limited.kl_tokens, limited.tokens) == (limit, 63 * 40)
    assert limited.mean_kl * limit == pytest.approx(whole.mean_kl * whole.kl_tokens + rest.mean_kl * 5)


def test_overflow_is_infinite_and_a_missing_reference_is_an_error() -> None:
    assert Score(nll=1e6, tokens=1).perplexity == math.inf
    with pytest.raises(ValueError, match="no reference"):
        _ = Score(nll=1.0, tokens=1).mean_kl
