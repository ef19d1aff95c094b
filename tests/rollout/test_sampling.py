import pytest

from lightning_minillm.rollout import SamplingConfig


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"temperature": -0.1},
        {"temperature": 0.0, "teacher_mix_alpha": 0.2},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"no_repeat_ngram_size": -1},
        {"teacher_mix_alpha": -0.1},
        {"teacher_mix_alpha": 1.1},
        {"teacher_mix_alpha": float("nan")},
        {"teacher_reward_temperature": 0.0},
    ],
)
def test_options_out_of_range_are_refused_when_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 8, "max_new_tokens": 8},
        {"temperature": 0.0, "teacher_mix_alpha": 0.0},
        {"teacher_mix_alpha": 1.0},
        {"teacher_reward_temperature": None},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(options):
    config = SamplingConfig(**options)
    assert all(getattr(config, name) == value for name, value in options.items())
