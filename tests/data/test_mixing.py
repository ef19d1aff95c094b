"""An epoch of a mixture has each source's share, is a function of seed and epoch, and leaves no row out for long."""

from collections import Counter

import pytest
import torch

from lightning_minillm.data import EncodedInstructions, Lengths, PlainTemplate, SplitSource, TokenLoader
from lightning_minillm.data.batches import LMStream, ShuffledStream
from lightning_minillm.data.mixing import Mixture
from lightning_minillm.data.reading import encode_records
from lightning_minillm.files import write_json_lines

NAMES = ["a"] * 30 + ["b"] * 8 + ["c"] * 2


@pytest.fixture
def mixture():
    return Mixture.of(NAMES, {"a": 1, "b": 2, "c": 1})


def test_shares_are_in_proportion_to_the_weights(mixture):
    assert mixture.counts == (10, 20, 10)
    assert Mixture.of(NAMES, {"a": 1, "b": 1, "c": 1}).counts == (14, 13, 13)
    assert "8 records of b are 50.0% of an epoch (2.5 times each)" in str(mixture)
    with pytest.raises(ValueError, match="no record of the source 'd' is left"):
        Mixture.of(NAMES, {"a": 1, "d": 1})


def test_an_epoch_has_every_source_share_and_rows_come_again_only_after_all_others(mixture):
    stream = ShuffledStream(40, 3, mixture)
    epochs = [stream.epoch(number).tolist() for number in range(3)]
    for rows in epochs:
        assert Counter(NAMES[row] for row in rows) == {"a": 10, "b": 20, "c": 10}
    seen = [row for rows in epochs for row in rows if NAMES[row] == "a"]
    assert sorted(seen) == list(range(30))
    for source, size in (("b", 8), ("c", 2)):
        counts = Counter(row for rows in epochs for row in rows if NAMES[row] == source)
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_order_depends_on_seed_and_position_only(mixture):
    stream = ShuffledStream(40, 3, mixture)
    whole = stream.indices(0, 130)
    torch.manual_seed(1)
    assert torch.equal(ShuffledStream(40, 3, Mixture.of(NAMES, {"a": 2, "b": 4, "c": 2})).indices(35, 60), whole[35:95])
    assert not torch.equal(ShuffledStream(40, 4, mixture).indices(0, 130), whole)
    assert torch.equal(torch.cat([stream.epoch(0), stream.epoch(1)]), whole[:80])


@pytest.fixture
def encoded(records, tokenizer, tmp_path):
    sources = {}
    for name, part, weight in (("a", records[:30], 1), ("b", records[30:], 3)):
        rows = ({"instruction": r.instruction, "input": r.input, "output": r.responses[0]} for r in part)
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
        sources[name] = {"path": str(tmp_path / f"{name}.jsonl"), "weight": weight}
    places = {"validation": sources["a"]["path"], "test": sources["a"]["path"]}
    source = SplitSource("train", places=places, sources=sources)
    return encode_records("train", source, tokenizer, PlainTemplate(), Lengths(96, 64))


def test_loaders_follow_the_mixture_and_resume(encoded):
    def names(batches):
        return [encoded.records[row].source for batch in batches for row in batch.indices.tolist()]

    assert isinstance(encoded, EncodedInstructions)
    loader = TokenLoader(encoded, 8, 4, seed=2)
    batches = list(loader)
    assert Counter(names(batches)) == {"a": 10, "b": 30}
    resumed = TokenLoader(encoded, 8, 4, seed=2)
    resumed.load_state_dict({"epoch": 0, "position": 3, "accumulation": 2})
    rest = [batch.indices.tolist() for batch in resumed]
    assert rest == [batch.indices.tolist() for batch in batches[3:]]
    stream = LMStream(encoded, 8, 4, seed=2)
    assert Counter(names(stream.batch(step) for step in range(10))) == {"a": 10, "b": 30}


def test_without_weights_nothing_changes(encoded):
    encoded.mixture = None
    assert torch.equal(ShuffledStream.of(encoded, 5).indices(7, 90), ShuffledStream(40, 5).indices(7, 90))
