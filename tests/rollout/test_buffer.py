import copy
import pickle

import pytest
import torch

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.distributed.placement import OneCopy
from lightning_minillm.functional.returns import whiten, whitening_sums
from lightning_minillm.rollout import RolloutBuffer
from lightning_minillm.rollout.batching import select_rollouts
from lightning_minillm.rollout.buffer import lane_schedule
from lightning_minillm.types import TokenBatch

NUM_ROLLOUTS, BATCH_SIZE, EPOCHS = 24, 8, 3
NAN = float("nan")


@pytest.fixture
def phase(make_rollouts):
    """Rollouts of a phase with returns and weights; what is masked is NaN."""
    rollouts = make_rollouts(count=NUM_ROLLOUTS, first_index=100)
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(NUM_ROLLOUTS, 6, generator=generator).masked_fill(~rollouts.response_mask, NAN)
    weights = torch.rand(NUM_ROLLOUTS, 6, generator=generator).masked_fill(~rollouts.response_mask, NAN)
    return rollouts, returns, weights


class Rank(OneCopy):
    """One of several ranks, whose sums and gathered objects the test supplies."""

    def __init__(self, rank=0, world_size=1):
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.reduce = lambda tensor: tensor
        self.gather = lambda value: [value]

    data_rank = property(lambda self: self.rank)
    data_world_size = property(lambda self: self.world_size)

    def sum_over_data(self, values):
        return self.reduce(values)

    def gather_over_data(self, value):
        return self.gather(value)


def make_buffer(num_rollouts=NUM_ROLLOUTS, batch_size=BATCH_SIZE, micro_batch_size=2, rank=0, world_size=1, **options):
    sizes = BatchSizes(batch_size, micro_batch_size, world_size)
    defaults = {"ppo_epochs": EPOCHS, "max_response_length": 9, "whiten": "all", "seed": 5}
    return RolloutBuffer(num_rollouts, sizes, **{**defaults, "placement": Rank(rank, world_size), **options})


def fill(buffer, phase, number=0):
    rollouts, returns, weights = phase
    rows = buffer.local_rows()
    buffer.fill(select_rollouts(rollouts, rows), returns[rows], weights[rows], number)
    return buffer


def fill_ranks(phase, world_size, **options):
    """The buffers of all ranks, with sums over ranks as a real run would have them."""
    micro = options.pop("micro_batch_size", 2)
    buffers = [
        make_buffer(micro_batch_size=micro, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    totals = {}
    for buffer in buffers:  # a first round collects what each rank adds to the two reductions
        calls = []
        buffer.placement.reduce = lambda tensor, calls=calls: calls.append(tensor) or tensor
        fill(buffer, phase)
        for position, tensor in enumerate(calls):
            totals[position] = totals.get(position, 0) + tensor
    for buffer in buffers:
        answers = iter(sorted(totals))
        buffer.placement.reduce = lambda tensor, answers=answers: totals[next(answers)]
        fill(buffer, phase)
    return buffers


def same_policy_batches(first, second, same_rollouts):
    return (
        same_rollouts(first.rollouts, second.rollouts)
        and torch.equal(
            first.advantages[first.rollouts.response_mask], second.advantages[second.rollouts.response_mask]
        )
        and first.normalizer == second.normalizer
        and (first.lm is None or torch.equal(first.lm.input_ids, second.lm.input_ids))
    )


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_every_pass_uses_every_rollout_once_in_another_order():
    schedule = lane_schedule(NUM_ROLLOUTS, BATCH_SIZE, EPOCHS, seed=0, phase=0)
    assert schedule.shape == (EPOCHS * 3, BATCH_SIZE)
    passes = schedule.reshape(EPOCHS, NUM_ROLLOUTS)
    assert passes.sort(-1).values.eq(torch.arange(NUM_ROLLOUTS)).all()
    assert len({tuple(order.tolist()) for order in passes}) == EPOCHS


def test_the_schedule_is_a_function_of_seed_and_phase():
    first = lane_schedule(64, 8, 2, seed=1, phase=2)
    assert torch.equal(first, lane_schedule(64, 8, 2, seed=1, phase=2))
    assert not torch.equal(first, lane_schedule(64, 8, 2, seed=1, phase=3))
    assert not torch.equal(first, lane_schedule(64, 8, 2, seed=2, phase=2))


def test_an_optimiser_step_takes_one_rollout_of_each_lane():
    schedule = lane_schedule(NUM_ROLLOUTS, BATCH_SIZE, EPOCHS, seed=0, phase=0)
    assert (schedule % BATCH_SIZE).sort(-1).values.eq(torch.arange(BATCH_SIZE)).all()


# --- serving a phase --------------------------------------------------------------------------------------------------


def test_a_phase_serves_every_rollout_once_a_pass(phase):
    buffer = fill(make_buffer(), phase)
    batches = list(buffer)
    assert len(batches) == len(buffer) == EPOCHS * NUM_ROLLOUTS // 2
    assert buffer.accumulation == 4
    assert buffer.num_steps == 9
    per_pass = len(buffer) // EPOCHS
    for start in range(0, len(buffer), per_pass):
        served = torch.cat([batch.rollouts.indices for batch in batches[start : start + per_pass]])
        assert sorted(served.tolist()) == list(range(100, 100 + NUM_ROLLOUTS))


def test_what_is_served_is_what_was_stored(phase):
    rollouts, returns, weights = phase
    for batch in fill(make_buffer(whiten="none"), phase):
        mask = batch.rollouts.response_mask
        rows = batch.rollouts.indices - 100
        stored = rollouts.response_mask[rows]
        assert torch.equal(batch.rollouts.response_ids[mask], rollouts.response_ids[rows][stored])
        assert torch.equal(batch.rollouts.teacher_hidden[mask], rollouts.teacher_hidden[rows][stored])
        assert torch.equal(batch.advantages[mask], returns[rows][stored])
        assert torch.equal(batch.importance_weights[mask], weights[rows][stored])
        assert mask.shape[1] == mask.sum(-1).max()


@pytest.mark.parametrize("mode", ["response", "all"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
def test_advantages_are_whitened_over_the_whole_optimiser_step(mode, micro_batch_size, phase):
    rollouts, returns, _ = phase
    buffer = fill(make_buffer(whiten=mode, micro_batch_size=micro_batch_size), phase)
    batches = list(buffer)
    for step in range(buffer.num_steps):
        micro = batches[step * buffer.accumulation : (step + 1) * buffer.accumulation]
        rows = torch.cat([batch.rollouts.indices for batch in micro]) - 100
        mask = rollouts.response_mask[rows]
        expected = whiten(returns[rows], whitening_sums(returns[rows], mask, mode, width=9))[mask]
        given = torch.cat([batch.advantages[batch.rollouts.response_mask] for batch in micro])
        torch.testing.assert_close(given, expected)
        # the micro-batches' normalisers average to the tokens of the step
        assert {batch.normalizer for batch in micro} == {mask.sum().item() / buffer.accumulation}


def test_advantages_and_weights_carry_no_gradient(phase):
    rollouts, returns, weights = phase
    buffer = make_buffer()
    buffer.fill(rollouts, returns, weights, 0)
    assert not any(batch.advantages.requires_grad or batch.importance_weights.requires_grad for batch in buffer)


def test_nothing_is_written_back(phase, same_rollouts):
    before = copy.deepcopy(phase)
    for batch in fill(make_buffer(), phase):
        batch.advantages.zero_()
        batch.rollouts.student_logprobs.add_(1)
    assert same_rollouts(phase[0], before[0])
    assert torch.equal(phase[1].nan_to_num(7), before[1].nan_to_num(7))


def test_the_pretraining_stream_goes_on_over_phases(phase):
    asked = []

    def lm_batch(step):
        asked.append(step)
        return TokenBatch(torch.full((1, 1), step), *(torch.ones(1, 1, dtype=torch.bool),) * 2, torch.zeros(1), 1.0)

    buffer = make_buffer(lm_batch=lm_batch)
    for number in range(3):
        batches = list(fill(buffer, phase, number))
        assert [int(batch.lm.input_ids) for batch in batches] == asked[-len(buffer) :]
    assert asked == list(range(3 * len(buffer)))


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_the_rollouts(world_size):
    shares = [make_buffer(micro_batch_size=1, rank=r, world_size=world_size).local_rows() for r in range(world_size)]
    assert {len(share) for share in shares} == {NUM_ROLLOUTS // world_size}
    assert torch.cat(shares).sort().values.tolist() == list(range(NUM_ROLLOUTS))


@pytest.mark.parametrize("mode", ["response", "all"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_optimiser_steps_do_not_depend_on_the_number_of_ranks(mode, world_size, phase):
    """Rows, advantages and token counts of every step: those of all ranks joined are those of one rank."""

    def steps(buffers):
        batches = [list(buffer) for buffer in buffers]
        accumulation = buffers[0].accumulation
        joined = []
        for step in range(buffers[0].num_steps):
            rows, tokens = {}, 0.0
            for rank in batches:
                for batch in rank[step * accumulation : (step + 1) * accumulation]:
                    tokens += batch.normalizer
                    for row, index in enumerate(batch.rollouts.indices.tolist()):
                        rows[index] = batch.advantages[row][batch.rollouts.response_mask[row]]
            joined.append((rows, tokens))
        return joined

    alone = steps(fill_ranks(phase, 1, whiten=mode))
    together = steps(fill_ranks(phase, world_size, whiten=mode))
    for (rows, tokens), (other_rows, other_tokens) in zip(alone, together, strict=True):
        assert rows.keys() == other_rows.keys()
        assert tokens == pytest.approx(other_tokens)
        for index, advantages in rows.items():
            torch.testing.assert_close(advantages, other_rows[index])


def test_a_rank_gets_its_share_only(phase):
    buffer = make_buffer(rank=1, world_size=2)
    with pytest.raises(ValueError, match="holds 12 rollouts, got 24"):
        buffer.fill(*phase, phase=0)


# --- going on from the middle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 17, 35, 36])
def test_a_restored_buffer_goes_on_where_it_was(position, phase, same_rollouts):
    buffer = fill(make_buffer(), phase, number=4)
    iterator = iter(buffer)
    for _ in range(position):
        next(iterator)
    state = pickle.loads(pickle.dumps(buffer.state_dict()))
    rest = list(iterator)
    assert len(rest) == 36 - position
    restored = make_buffer()
    restored.load_state_dict(state)
    for given, expected in zip(restored, rest, strict=True):
        assert same_policy_batches(given, expected, same_rollouts)
    # and the next phase is served whole
    assert len(list(fill(restored, phase, number=5))) == 36


def test_states_of_all_ranks_lie_in_one_checkpoint(phase, same_rollouts):
    """Rank zero writes for all: each rank finds its own rollouts again."""
    buffers = fill_ranks(phase, 2)
    local = []
    for buffer in buffers:
        next(iter(buffer))
        buffer.placement.gather = lambda value: local.append(value) or [value]
        buffer.state_dict()
    state = {"position": 1, "phase": 0, "accumulation": buffers[0].accumulation, "ranks": local}
    for rank, buffer in enumerate(buffers):
        restored = make_buffer(rank=rank, world_size=2)
        sums = iter((buffer._sums, buffer._counts))
        restored.placement.reduce = lambda tensor, sums=sums: next(sums)
        restored.load_state_dict(state)
        for given, expected in zip(restored, buffer, strict=True):
            assert same_policy_batches(given, expected, same_rollouts)


def test_an_empty_buffer_has_a_state_too():
    buffer = make_buffer()
    restored = make_buffer()
    restored.load_state_dict(buffer.state_dict())
    with pytest.raises(RuntimeError, match="on_train_epoch_start"):
        next(iter(restored))


def state_of_all_ranks(buffers):
    """The state that a real run would write: with the rows of all ranks."""
    local = []
    for buffer in buffers:
        buffer.placement.gather = lambda value: local.append(value) or [value]
        state = buffer.state_dict()
    return {**state, "ranks": local}


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_another_number_of_ranks_goes_on_with_the_same_batches(before, after, phase, same_rollouts):
    """Stopped after the second step on some ranks; the rest on others is what these would have served all along."""
    buffers = fill_ranks(phase, before, micro_batch_size=1)
    for buffer in buffers:
        batches = iter(buffer)
        for _ in range(2 * buffer.accumulation):
            next(batches)
    state = state_of_all_ranks(buffers)
    for rank, expected in enumerate(fill_ranks(phase, after, micro_batch_size=1)):
        restored = make_buffer(micro_batch_size=1, rank=rank, world_size=after)
        sums = iter((expected._sums, expected._counts))
        restored.placement.reduce = lambda tensor, sums=sums: next(sums)
        restored.load_state_dict(state)
        rest = list(expected)[2 * expected.accumulation :]
        assert len(rest) > 4
        for given, wanted in zip(restored, rest, strict=True):
            assert same_policy_batches(given, wanted, same_rollouts)


def test_inside_a_step_ranks_and_micro_batches_stay_as_they_are(phase):
    buffer = fill(make_buffer(micro_batch_size=1), phase)
    next(iter(buffer))
    with pytest.raises(ValueError, match=r"after 1 of 8 micro-batches, and a step has 4 here"):
        make_buffer(micro_batch_size=1, rank=0, world_size=2).load_state_dict(buffer.state_dict())


def test_other_sizes_cannot_go_on_from_the_middle(phase):
    state = fill(make_buffer(), phase).state_dict()
    with pytest.raises(ValueError, match="holds 24 rollouts of 1 ranks, and this run collects 16 in steps of 8"):
        make_buffer(num_rollouts=16).load_state_dict(state)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": 20}, "num_rollouts=20 is not a multiple of batch_size=8; the nearest is 16 or 24"),
        ({"num_rollouts": 5}, "the nearest is 8"),
        (
            {"micro_batch_size": 3},
            "batch_size=8 is not a multiple of micro_batch_size x devices=3; the nearest is 6 or 9",
        ),
        ({"micro_batch_size": 4, "world_size": 4}, "micro_batch_size x devices=16; the nearest is 16"),
        ({"micro_batch_size": 0}, "must be at least 1"),
        ({"ppo_epochs": 0}, "ppo_epochs must be at least 1"),
        ({"num_rollouts": 0}, "the nearest is 8"),
    ],
)
def test_sizes_that_do_not_divide_name_the_nearest(options, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(**options)
