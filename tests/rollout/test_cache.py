import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, cache_utils

from lightning_minillm.functional.grouping import length_groups
from lightning_minillm.models import SplitCausalLM
from lightning_minillm.models import split as split_file
from lightning_minillm.rollout import cache as cache_file
from lightning_minillm.rollout import decoder as decoder_file
from lightning_minillm.rollout.cache import InPlaceCache, make_cache, rows_to_keep
from lightning_minillm.rollout.decoder import Decoder, make_decoder
from lightning_minillm.rollout.full_pass import FullPassDecoder

LENGTHS = [9, 9, 7, 6, 6, 3, 2, 1]


def states(model, prompts, drops, lengths=LENGTHS):
    """The states of twelve steps; ``drops[step]`` are the rows (of those left) that leave the batch after it."""
    decoder = Decoder(SplitCausalLM(model), prompts, lengths, max_new_tokens=12)
    rows, seen = torch.arange(len(lengths)), []
    for step in range(12):
        seen.append({int(row): state for row, state in zip(rows, decoder.state, strict=True)})
        running = torch.ones(len(rows), dtype=torch.bool)
        running[drops.get(step, [])] = False
        kept = rows_to_keep(running)
        if len(kept) < len(rows):
            decoder.keep(kept)
            rows = rows[kept]
        decoder.advance((rows + step) % 36 + 1)
    return decoder, seen


@pytest.mark.parametrize("drops", [{}, {0: [0], 3: [1, 6], 4: [0, 1, 2]}], ids=["all", "some leave"])
def test_states_are_those_of_the_dynamic_cache(family, drops, make_model, make_prompts, monkeypatch):
    """Prompts read in groups, growth by blocks, rows that move: six families, sliding windows among them."""
    model, prompts = make_model(family, seed=1), make_prompts(LENGTHS)
    with torch.no_grad():
        monkeypatch.setattr(decoder_file, "make_cache", lambda config, *sizes: DynamicCache(config=config))
        plain, expected = states(model, prompts, drops)
        monkeypatch.undo()
        monkeypatch.setattr(cache_file, "_BLOCK", 3)
        monkeypatch.setitem(split_file._FEWEST_TOKENS, "cpu", 10)
        ours, given = states(model, prompts, drops)
    assert isinstance(plain._cache, DynamicCache)
    assert isinstance(ours._cache, InPlaceCache)
    assert len(length_groups(LENGTHS, 10)) == 3
    for ours_now, plain_now in zip(given, expected, strict=True):
        assert ours_now.keys() == plain_now.keys()
        for row, state in ours_now.items():
            torch.testing.assert_close(state, plain_now[row], rtol=1e-4, atol=1e-4)


def test_prompts_of_one_length_need_no_mask(family, make_model, make_prompts):
    model = make_model(family, seed=1)
    with torch.no_grad():
        decoder, given = states(model, make_prompts([6] * 4), {2: [1]}, [6] * 4)
        _, expected = states(model, make_prompts([6] * 4 + [3]), {0: [4], 2: [1]}, [6] * 4 + [3])
    assert decoder._mask is None
    for ours, padded in zip(given[1:], expected[1:], strict=True):
        for row, state in ours.items():
            torch.testing.assert_close(state, padded[row], rtol=1e-4, atol=1e-4)


SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
STATES = {
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
}


needs_states = pytest.mark.skipif(
    not hasattr(cache_utils, "LinearAttentionLayer"), reason="transformers 4 has no layers for states in its caches"
)


@needs_states
@pytest.mark.parametrize("architecture", STATES)
def test_states_of_ragged_prompts_are_those_of_each_prompt_alone(architecture, make_model, make_prompts):
    """Prompts are read by length and their states joined; then rows leave the batch."""
    model = make_model(architecture, seed=1, **{**SIZES, **STATES[architecture]})
    prompts = make_prompts(LENGTHS)
    with torch.no_grad():
        decoder, given = states(model, prompts, {0: [0], 3: [1, 6], 4: [0, 1, 2]})
        assert isinstance(decoder._cache, InPlaceCache)
        assert decoder._cache.has_states
        for row, length in enumerate(LENGTHS):
            ids = prompts.input_ids[row, None, -length:]
            tokens = torch.cat([ids, (row + torch.arange(11))[None] % 36 + 1], dim=1)
            alone = SplitCausalLM(model).hidden(tokens, None)[0][0, length - 1 :]
            for step, seen in enumerate(given):
                if row in seen:
                    torch.testing.assert_close(seen[row], alone[step], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(hasattr(cache_utils, "LinearAttentionLayer"), reason="transformers 5 has layers for states")
@pytest.mark.parametrize("architecture", STATES)
def test_models_with_states_are_sampled_from_without_a_cache_in_transformers_4(architecture, make_model, make_prompts):
    split = SplitCausalLM(make_model(architecture, seed=1, **{**SIZES, **STATES[architecture]}))
    with torch.no_grad(), pytest.warns(UserWarning, match="is sampled from without a cache"):
        assert isinstance(make_decoder(split, make_prompts(LENGTHS), LENGTHS, 5), FullPassDecoder)


@needs_states
def test_layers_of_an_unknown_kind_get_the_models_own_cache(make_model, monkeypatch):
    monkeypatch.setattr(cache_file, "_STATEFUL", ())
    config = make_model("lfm2", **{**SIZES, **STATES["lfm2"]}).config
    assert not isinstance(make_cache(config, 2, 3, 4), InPlaceCache)


def test_nothing_is_copied_while_a_block_has_room(make_model, make_prompts):
    with torch.no_grad():
        decoder = Decoder(SplitCausalLM(make_model("gpt2")), make_prompts(LENGTHS), LENGTHS, max_new_tokens=12)
        stores = [layer.keys.data_ptr() for layer in decoder._cache.layers]
        for _ in range(11):
            decoder.advance(torch.ones(len(LENGTHS), dtype=torch.int64))
    assert [layer.keys.data_ptr() for layer in decoder._cache.layers] == stores


@pytest.mark.parametrize("running", ["11111", "00001", "01010", "10000", "11110", "0111001"])
def test_rows_to_keep_moves_no_more_rows_than_left(running):
    mask = torch.tensor([int(c) for c in running], dtype=torch.bool)
    rows = rows_to_keep(mask)
    assert sorted(rows.tolist()) == mask.nonzero().squeeze(-1).tolist()
    assert (rows != torch.arange(len(rows))).sum() <= (~mask).sum()


def test_a_cache_goes_as_soon_as_nobody_holds_it(make_model, make_prompts):
    """A cycle would keep the largest tensors of sampling until the garbage collector comes by."""
    with torch.no_grad():
        decoder = Decoder(SplitCausalLM(make_model("gpt2")), make_prompts(LENGTHS), LENGTHS, max_new_tokens=12)
    keys = weakref.ref(decoder._cache.layers[0].keys)
    gc.disable()
    try:
        del decoder
        assert keys() is None
    finally:
        gc.enable()
