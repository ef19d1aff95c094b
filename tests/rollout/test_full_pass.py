import pytest
import torch
from transformers import cache_utils

from lightning_minillm.models import SplitCausalLM
from lightning_minillm.rollout import decoder as decoder_file
from lightning_minillm.rollout.cache import InPlaceCache
from lightning_minillm.rollout.decoder import Decoder, make_decoder
from lightning_minillm.rollout.full_pass import FullPassDecoder

LENGTHS = [6, 4, 4, 1]


@torch.no_grad()
def states(decoder):
    """The states of five steps, during which rows leave the batch."""
    rows, seen = torch.arange(len(LENGTHS)), []
    for step, kept in enumerate([[0, 1, 2, 3], [0, 3, 2], [0, 1, 2], [2, 0], [0, 1]]):
        decoder.advance(rows + step + 1)
        decoder.keep(torch.tensor(kept))
        rows = rows[kept]
        seen.append(dict(zip(rows.tolist(), decoder.state, strict=True)))
    return seen


def test_full_passes_give_the_states_of_a_cache(family, make_model, make_prompts):
    split, prompts = SplitCausalLM(make_model(family)), make_prompts(LENGTHS)
    with torch.no_grad():
        cached, full = Decoder(split, prompts, LENGTHS, max_new_tokens=5), FullPassDecoder(split, prompts)
        torch.testing.assert_close(full.logits(30), cached.logits(30), rtol=1e-4, atol=1e-4)
        assert not full.is_static
        for given, expected in zip(states(full), states(cached), strict=True):
            assert given.keys() == expected.keys()
            for row, state in given.items():
                torch.testing.assert_close(state, expected[row], rtol=1e-4, atol=1e-4)


def test_a_model_without_a_cache_is_read_again_for_every_token(make_model, make_prompts):
    model = make_model("openai-gpt", n_layer=2, n_head=2, n_embd=16, n_positions=64)
    split, prompts = SplitCausalLM(model), make_prompts(LENGTHS)
    with pytest.warns(UserWarning, match="OpenAIGPTLMHeadModel is sampled from without a cache.*takes no cache"):
        assert isinstance(make_decoder(split, prompts, LENGTHS, 5), FullPassDecoder)
    assert split.cache_kind == "none"


def test_the_stock_cache_is_taken_where_ours_is_wrong(make_model, make_prompts, monkeypatch, recwarn):
    """As for code that reads the cache's tensors by itself, and finds slots that are not yet in use."""
    split, prompts = SplitCausalLM(make_model("llama")), make_prompts(LENGTHS)
    monkeypatch.setattr(InPlaceCache, "finish_prefill", lambda self: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        make_decoder(split, prompts, LENGTHS, 5)
    monkeypatch.setattr(InPlaceCache, "finish_prefill", lambda self: int("no number"))
    with torch.no_grad():
        decoder, full = make_decoder(split, prompts, LENGTHS, 5), FullPassDecoder(split, prompts)
        assert split.cache_kind == "stock"
        for given, expected in zip(states(decoder), states(full), strict=True):
            for row, state in given.items():
                torch.testing.assert_close(state, expected[row], rtol=1e-4, atol=1e-4)
    assert not recwarn.list


def test_states_of_a_sharded_model_are_not_cached(make_model, make_prompts, monkeypatch):
    config = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2}
    split, prompts = SplitCausalLM(make_model("mamba", **config)), make_prompts(LENGTHS)
    monkeypatch.setattr(decoder_file, "is_sharded", lambda model: True)
    # with transformers 4, Mamba is not sampled from with a cache at all
    shared, unusable = "ranks that gather shards must take the same passes", "specify the `cache_position` manually"
    match = shared if hasattr(cache_utils, "LinearAttentionLayer") else unusable
    with torch.no_grad(), pytest.warns(UserWarning, match=match):
        assert isinstance(make_decoder(split, prompts, LENGTHS, 5), FullPassDecoder)


def test_a_wrong_cache_is_found_before_it_is_used(make_model, make_prompts, monkeypatch):
    """A cache whose rows do not leave the batch: the shapes fit, the states do not."""
    split, prompts = SplitCausalLM(make_model("llama")), make_prompts(LENGTHS)
    keep = Decoder.keep
    monkeypatch.setattr(Decoder, "keep", lambda self, rows: keep(self, rows.flip(0)))
    with torch.no_grad(), pytest.warns(UserWarning, match="with its cache the states differ by"):
        assert isinstance(make_decoder(split, prompts, LENGTHS, 5), FullPassDecoder)


def test_a_right_cache_is_tried_once(make_model, make_prompts, recwarn):
    split, prompts = SplitCausalLM(make_model("llama")), make_prompts(LENGTHS)
    with torch.no_grad():
        assert all(isinstance(make_decoder(split, prompts, LENGTHS, 5), Decoder) for _ in range(2))
    assert split.cache_kind == "ours"
    assert not recwarn.list


def test_an_error_that_is_not_the_caches_is_raised(make_model, make_prompts, monkeypatch):
    split, prompts = SplitCausalLM(make_model("llama")), make_prompts(LENGTHS)

    def fail(*args, **kwargs):
        raise RuntimeError("the model does not run at all")

    monkeypatch.setattr(split, "hidden", fail)
    with pytest.raises(ValueError, match="cannot be sampled from: RuntimeError: the model does not run at all"):
        make_decoder(split, prompts, LENGTHS, 5)
