import pickle

import pytest
import torch

from lightning_minillm.data.stream import ShuffledStream, epoch_permutation


def test_each_epoch_holds_each_row_once_in_another_order():
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


def test_without_shuffle_rows_repeat_in_order():
    assert ShuffledStream(3, seed=9, shuffle=False).indices(1, 6).tolist() == [1, 2, 0, 1, 2, 0]


def test_pickles():
    stream = ShuffledStream(9, seed=2)
    assert torch.equal(pickle.loads(pickle.dumps(stream)).indices(3, 20), stream.indices(3, 20))


def test_errors():
    with pytest.raises(ValueError, match="at least 1 row"):
        ShuffledStream(0, seed=0)
    with pytest.raises(ValueError, match="seed"):
        ShuffledStream(1, seed=-1)
    with pytest.raises(ValueError, match="start and count"):
        ShuffledStream(1, seed=0).indices(-1, 1)
