"""DistiLLM's replay: when it reads references, samples, or replays, and that a restart changes nothing."""

import io
from functools import partial

import pytest
import torch

from lightning_minillm.rollout.replay import AdaptiveReplay
from lightning_minillm.rollout.sources import TextRequest
from lightning_minillm.types import RolloutBatch


@pytest.fixture
def ask(make_prompts):
    """``ask(source, phase, progress)``: who wrote the text (``replay`` for the buffer), and the text."""

    def make(source, phase=0, progress=0.0):
        prompts = make_prompts((3, 5 + phase % 3), first_index=2 * phase)
        asked = []

        def writer(name, token):
            def write(given):
                asked.append(name)
                shape = (2, 1 + phase % 4)
                zeros, mask = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
                ids = torch.full(shape, token)
                return RolloutBatch(
                    given.input_ids, given.attention_mask, ids, mask, given.indices, zeros, zeros, zeros, zeros
                )

            return write

        writers = {name: writer(name, token) for token, name in enumerate(("reference", "student", "teacher"))}
        text = source.text(TextRequest(prompts, phase, progress, 0, **writers))
        return (asked or ["replay"])[0], text

    return make


def turns(ask, source, phases, progress=0.0):
    return [ask(source, phase, progress)[0] for phase in phases]


def test_without_a_worse_validation_the_text_is_the_references(ask):
    source = AdaptiveReplay()
    for loss in (3.0, 2.5, 3.09):
        source.on_validation(loss)
    assert set(turns(ask, source, range(20))) == {"reference"}


def test_a_loss_worse_than_at_the_last_rise_raises_the_probability():
    source, seen = AdaptiveReplay(step=0.4), []
    for loss in (3.0, 3.05, 3.1, 3.15, 3.3, 2.0, 4.0):
        source.on_validation(loss)
        seen.append(round(source.probability, 6))
    assert seen == [0.0, 0.0, 0.4, 0.4, 0.8, 0.8, 1.0]


def test_a_buffer_with_room_is_filled_before_anything_is_replayed(ask):
    source = AdaptiveReplay(probability=1.0, capacity=10)
    assert turns(ask, source, range(5), progress=1.0) == ["student"] * 5
    assert len(source) == 10
    assert set(turns(ask, source, range(5, 50), progress=1.0)) == {"replay"}


@pytest.mark.parametrize(
    ("fresh", "progress", "share"),
    [("decreasing", 0.0, 1.0), ("decreasing", 0.75, 0.25), ("constant", 0.9, 0.5), ("increasing", 0.75, 0.75)],
)
def test_the_fresh_share_of_a_full_buffer(ask, fresh, progress, share):
    source = AdaptiveReplay(probability=0.8, capacity=4, fresh=fresh)
    turns(ask, source, range(20))
    written = turns(ask, source, range(20, 820), progress)
    assert written.count("reference") / 800 == pytest.approx(0.2, abs=0.05)
    assert written.count("student") / 800 == pytest.approx(0.8 * share, abs=0.05)


def test_replayed_rows_are_whole_rows_of_the_last_ones_written(ask):
    source = AdaptiveReplay(probability=1.0, capacity=6)
    written = {}
    for phase in range(5):
        text = ask(source, phase)[1]
        written |= {int(i): (p[m].tolist(), int(n)) for i, p, m, n in rows_of(text)}
    for phase in range(5, 30):
        name, text = ask(source, phase, progress=1.0)
        assert name == "replay"
        assert len(set(text.indices.tolist())) == 2
        for index, ids, mask, length in rows_of(text):
            assert index >= 4  # the first two phases have left
            assert written[int(index)] == (ids[mask].tolist(), int(length))


def rows_of(text):
    return zip(text.indices, text.prompt_ids, text.prompt_mask, text.lengths, strict=True)


def test_a_run_that_goes_on_takes_the_same_turns_with_the_same_text(ask):
    source = AdaptiveReplay(probability=0.9, capacity=6)
    source.on_validation(1.0)
    turns(ask, source, range(10), progress=0.5)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    again = AdaptiveReplay(capacity=6)
    again.load_state_dict(torch.load(file))
    for each in (source, again):
        each.on_validation(1.2)
    assert again.probability == source.probability == 1.0
    for phase in range(10, 30):
        (name, text), (other, same) = ask(source, phase, 0.5), ask(again, phase, 0.5)
        assert name == other
        assert torch.equal(text.prompt_ids, same.prompt_ids)
        assert torch.equal(text.response_ids, same.response_ids)


def test_options_out_of_range(ask):
    for options in ({"probability": 2.0}, {"step": 0.0}, {"tolerance": -1.0}, {"capacity": 0}, {"fresh": "never"}):
        with pytest.raises(ValueError, match="must"):
            AdaptiveReplay(**options)
    with pytest.raises(ValueError, match="capacity=1 rows cannot hold a phase of 2"):
        ask(AdaptiveReplay(capacity=1))


def write_numbers(given):
    """Text that tells its prompt's number."""
    ids = given.indices[:, None] + torch.arange(3)
    mask, zeros = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
    return RolloutBatch(given.input_ids, given.attention_mask, ids, mask, given.indices, zeros, None, zeros, None)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_replayed_does_not_depend_on_the_number_of_ranks(ranks, make_prompts):
    """Ranks of which each has some of the rows write, keep and replay together what one would."""
    alone = AdaptiveReplay(probability=1.0, capacity=8)
    sources = [AdaptiveReplay(probability=1.0, capacity=8) for _ in range(ranks)]
    replays = 0
    for phase in range(6):
        prompts = make_prompts((3,) * 4, first_index=4 * phase)
        writers = [write_numbers] * 3
        expected = alone.text(TextRequest(prompts, phase, 1.0, 0, *writers)).response_ids.tolist()
        replays += expected != write_numbers(prompts).response_ids.tolist()
        for rank, source in enumerate(sources):
            rows = torch.arange(4)[rank::ranks]
            mine = type(prompts)(prompts.input_ids[rows], prompts.attention_mask[rows], prompts.indices[rows])
            gather = partial(lambda whole, _: whole, write_numbers(prompts))
            request = TextRequest(mine, phase, 1.0, 0, *writers, rows=rows, num_rows=4, gather=gather)
            assert source.text(request).response_ids.tolist() == expected[rank::ranks]
    assert replays == 4
