import pytest

from lightning_minillm.batch_sizes import BatchSizes, divide, rescale_position


@pytest.mark.parametrize(
    ("value", "divisor", "message"),
    [
        (60, 16, "rows=60 is not a multiple of slots=16; the nearest is 48 or 64$"),
        (3, 16, "rows=3 is not a multiple of slots=16; the nearest is 16$"),
        (0, 4, "rows=0 is not a multiple of slots=4; the nearest is 4$"),
        (8, 0, "slots must be at least 1, got 0$"),
    ],
)
def test_numbers_that_do_not_divide(value, divisor, message):
    with pytest.raises(ValueError, match=message):
        divide(value, divisor, "rows", "slots")


@pytest.mark.parametrize(("micro", "world", "accumulation"), [(None, 1, 1), (None, 4, 1), (8, 2, 4), (64, 1, 1)])
def test_the_sizes_multiply_to_the_global_batch(micro, world, accumulation):
    sizes = BatchSizes.of(64, micro, world)
    assert sizes.accumulation == accumulation
    assert sizes.micro_batch_size * sizes.world_size * sizes.accumulation == sizes.batch_size == 64


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((64, 3, 2), "batch_size=64 is not a multiple of micro_batch_size x devices=6; the nearest is 60 or 66"),
        ((8, None, 3), "batch_size=8 is not a multiple of devices=3; the nearest is 6 or 9"),
        ((8, 0, 1), "micro_batch_size must be at least 1"),
        ((8, 8, 0), "world_size must be at least 1"),
        ((0, 1, 1), "the nearest is 1"),
    ],
)
def test_sizes_that_do_not_divide(sizes, message):
    with pytest.raises(ValueError, match=message):
        BatchSizes.of(*sizes)


@pytest.mark.parametrize(
    ("position", "before", "now", "expected"), [(8, 4, 2, 4), (5, 4, 4, 5), (0, 1, 8, 0), (3, 1, 2, 6)]
)
def test_positions_between_steps_are_rescaled(position, before, now, expected):
    assert rescale_position(position, before, now) == expected


def test_a_position_inside_a_step_cannot_be_rescaled():
    with pytest.raises(ValueError, match="inside an optimiser step, after 1 of 4 micro-batches, and a step has 2 here"):
        rescale_position(9, 4, 2)
