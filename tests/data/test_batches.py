from itertools import pairwise

import pytest
import torch

from lightning_minillm.data import (
    EncodedInstructions,
    EvaluationLoader,
    Lengths,
    LMStream,
    PackedCorpus,
    PlainTemplate,
    ShuffledStream,
    TokenLoader,
    generate_corpus,
)
from lightning_minillm.data.batches import epoch_permutation

LAYOUTS = [(8, 1), (4, 1), (2, 2), (1, 4), (2, 4), (1, 8)]


@pytest.fixture(scope="module")
def encoded(records, tokenizer):
    return EncodedInstructions(records, tokenizer, PlainTemplate(), Lengths(96, 64))


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return PackedCorpus(generate_corpus(30), tokenizer, max_length=16)


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(a, b):
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.indices, b.indices) and a.normalizer == b.normalizer


@pytest.mark.parametrize(("micro", "world"), LAYOUTS)
def test_every_layout_sees_the_same_global_batches(encoded, micro, world):
    whole = [set(batch.indices.tolist()) for batch in epoch_of(TokenLoader(encoded, 8, seed=1), epoch=2)]
    accumulation = 8 // (micro * world)
    dealt = [[] for _ in whole]
    for rank in range(world):
        loader = TokenLoader(encoded, 8, micro, rank=rank, world_size=world, seed=1)
        batches = epoch_of(loader, epoch=2)
        assert len(batches) == len(loader) == loader.steps_per_epoch * accumulation == 5 * accumulation
        assert loader.accumulation == accumulation
        for number, batch in enumerate(batches):
            assert len(batch.indices) == micro
            dealt[number // accumulation] += batch.indices.tolist()
    assert [set(rows) for rows in dealt] == whole
    assert all(len(rows) == 8 for rows in dealt)


@pytest.mark.parametrize(("micro", "world"), LAYOUTS)
def test_normalizers_make_the_mean_over_the_global_batch(encoded, micro, world):
    """Averaged over ranks and micro-batches, sum / normalizer is the mean over all target tokens."""
    value = torch.randn(len(encoded), 96, generator=torch.Generator().manual_seed(0))
    accumulation = 8 // (micro * world)
    totals = torch.zeros(5)
    for rank in range(world):
        loader = TokenLoader(encoded, 8, micro, rank=rank, world_size=world, seed=1)
        for number, batch in enumerate(epoch_of(loader)):
            width = batch.input_ids.shape[1]
            loss = (value[batch.indices, :width] * batch.target_mask).sum() / batch.normalizer
            totals[number // accumulation] += loss / (accumulation * world)
    for step, batch in enumerate(epoch_of(TokenLoader(encoded, 8, seed=1))):
        width = batch.input_ids.shape[1]
        expected = value[batch.indices, :width][batch.target_mask].mean()
        torch.testing.assert_close(totals[step], expected)


def test_epochs_differ_and_repeat(encoded):
    loader = TokenLoader(encoded, 8, seed=1)
    first, second, again = epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(loader, 0)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))
    assert {row for batch in first for row in batch.indices.tolist()} == set(range(40))


def test_micro_batches_group_rows_of_similar_length(encoded):
    loader = TokenLoader(encoded, 40, 4, seed=0)
    lengths = [encoded.lengths[batch.indices] for batch in loader]
    for shorter, longer in pairwise(lengths):
        assert shorter.max() <= longer.min()


def test_the_rows_after_the_last_full_batch_are_left_out(encoded):
    batches = list(TokenLoader(encoded, 16, 4))
    rows = {row for batch in batches for row in batch.indices.tolist()}
    assert (len(batches), len(rows)) == (8, 32)


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_resume_in_the_middle_of_an_epoch(encoded, stop):
    def make():
        return TokenLoader(encoded, 8, 2, seed=4)

    whole = [epoch_of(make(), epoch) for epoch in range(4)]
    loader = make()
    epoch_of(loader, 1)
    loader.sampler.set_epoch(2)
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    state = loader.state_dict()

    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    early = iter(resumed)  # Lightning makes the iterator before it sets the epoch
    resumed.sampler.set_epoch(2)
    rest = list(early)
    assert len(rest) == 20 - stop
    assert all(same(a, b) for a, b in zip(rest, whole[2][stop:], strict=True))
    assert all(same(a, b) for a, b in zip(epoch_of(resumed, 3), whole[3], strict=True))


def test_a_run_with_different_micro_batches_resumes_at_the_same_step(encoded):
    loader = TokenLoader(encoded, 8, 2, seed=4)
    iterator = iter(loader)
    for _ in range(8):
        next(iterator)
    resumed = TokenLoader(encoded, 8, 4, seed=4)
    resumed.load_state_dict(loader.state_dict())
    whole = epoch_of(TokenLoader(encoded, 8, 4, seed=4), 0)
    assert all(same(a, b) for a, b in zip(list(resumed), whole[4:], strict=True))
    next(iterator)
    with pytest.raises(ValueError, match="after 1 of 4 micro-batches, and a step has 2 here"):
        resumed.load_state_dict(loader.state_dict())


def test_a_state_of_a_finished_epoch_does_not_shorten_the_next(encoded):
    loader = TokenLoader(encoded, 8)
    epoch_of(loader, 0)
    resumed = TokenLoader(encoded, 8)
    resumed.load_state_dict(loader.state_dict())
    assert len(epoch_of(resumed, 1)) == 5


@pytest.mark.parametrize(("micro", "world"), LAYOUTS)
def test_the_lm_stream_is_the_same_in_every_layout(corpus, micro, world):
    whole = [LMStream(corpus, 8, seed=3).batch(step) for step in range(6)]
    accumulation = 8 // (micro * world)
    for step in range(6):
        rows = []
        for rank in range(world):
            stream = LMStream(corpus, 8, micro, rank=rank, world_size=world, seed=3)
            for number in range(accumulation):
                batch = stream.batch(step * accumulation + number)
                assert batch.normalizer == micro * 15
                rows += batch.indices.tolist()
        assert sorted(rows) == sorted(whole[step].indices.tolist())


def test_the_lm_stream_crosses_epochs_and_has_no_state(corpus):
    stream = LMStream(corpus, 4, seed=0)
    num = len(corpus)
    rows = [row for step in range(num) for row in stream.batch(step).indices.tolist()]
    assert sorted(rows) == sorted(list(range(num)) * 4)
    assert same(stream.batch(3), LMStream(corpus, 4, seed=0).batch(3))
    assert stream.batch(10**9).input_ids.shape == (4, 16)


def test_the_lm_stream_takes_instruction_pairs_too(encoded):
    batch = LMStream(encoded, 8, 4).batch(1)
    assert batch.input_ids.shape[0] == 4
    assert batch.target_mask.any()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_deals_each_row_once(encoded, world):
    loaders = [EvaluationLoader(encoded, 6, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1
    rows = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(1 <= len(batch.tasks) <= 6 for batch in batches)
        rows += [row for batch in batches for row in batch.prompts.indices.tolist()]
    assert sorted(rows) == list(range(40))


def test_errors(encoded):
    with pytest.raises(ValueError, match="the nearest is 6 or 9"):
        TokenLoader(encoded, 8, world_size=3)
    with pytest.raises(ValueError, match="rank must be in"):
        TokenLoader(encoded, 8, rank=2, world_size=2)
    with pytest.raises(ValueError, match="greater than the 40 rows"):
        TokenLoader(encoded, 64)
    with pytest.raises(ValueError, match="eval_batch_size must be at least 1"):
        EvaluationLoader(encoded, 0)
    with pytest.raises(ValueError, match="cannot be dealt to 3 ranks"):
        EvaluationLoader(encoded, 1, world_size=3)


def test_each_epoch_contains_each_row_once_in_a_different_order():
    stream = ShuffledStream(50, seed=3)
    epochs = stream.indices(0, 200).reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


@pytest.mark.parametrize("pieces", [[1] * 37, [7, 30], [36, 1], [0, 37]])
def test_a_stream_does_not_depend_on_how_it_is_read(pieces):
    stream, position, parts = ShuffledStream(10, seed=1), 5, []
    for count in pieces:
        parts.append(stream.indices(position, count))
        position += count
    assert torch.equal(torch.cat(parts), ShuffledStream(10, seed=1).indices(5, 37))


def test_far_positions_need_no_replay():
    far = ShuffledStream(7, seed=0).indices(7 * 10**9, 7)
    assert torch.equal(far, epoch_permutation(7, 0, 10**9))


def test_seeds_give_different_orders():
    orders = {tuple(ShuffledStream(20, seed).indices(0, 20).tolist()) for seed in range(10)}
    assert len(orders) == 10


def test_streams_reject_what_they_cannot_order():
    with pytest.raises(ValueError, match="num_rows must be at least 1"):
        ShuffledStream(0, seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        ShuffledStream(1, seed=-1)
    with pytest.raises(ValueError, match="start and count"):
        ShuffledStream(1, seed=0).indices(-1, 1)
