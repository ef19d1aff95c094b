import pytest
import torch

from lightning_minillm.rollout import score_responses
from lightning_minillm.rollout.batching import select_prompts
from lightning_minillm.rollout.sampler import token_noise
from lightning_minillm.rollout.scoring import response_states

EOS = 0
LENGTHS = (5, 3, 7, 1, 4, 6, 2, 7, 3, 5, 1, 6)
ENDS = [EOS, 1, 2, 3]  # several ids that end a response give responses of many lengths


@pytest.fixture(scope="module")
def models(make_model):
    """Student and teacher of another family."""
    return make_model("gpt2", seed=1), make_model("llama", seed=2)


# --- the right tokens -------------------------------------------------------------------------------------------------


def test_alpha_zero_is_the_student_to_the_bit(models, make_sampler, make_prompts):
    """With or without a teacher beside it."""
    student, teacher = models
    alone = make_sampler(student).sample(make_prompts(LENGTHS), seed=3)
    beside = make_sampler(student, teacher, teacher_mix_alpha=0.0).sample(make_prompts(LENGTHS), seed=3)
    assert torch.equal(alone.response_ids, beside.response_ids)
    assert torch.equal(alone.mixture_logprobs, alone.student_logprobs)
    assert torch.equal(beside.mixture_logprobs, beside.student_logprobs)
    assert alone.teacher_logprobs is None
    assert alone.reward_logprobs is None


def test_greedy_decoding_is_the_models_own(family, make_model, make_sampler, make_prompts):
    model, prompts = make_model(family, seed=1), make_prompts(LENGTHS, width=9)
    with torch.no_grad():
        full = model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask.long(),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
    given = make_sampler(model, temperature=0.0, max_new_tokens=12).sample(prompts, seed=0)
    assert torch.equal(given.response_ids, full[:, 9:])


# --- ends of responses ------------------------------------------------------------------------------------------------


def test_a_response_stops_at_its_first_eos(models, make_sampler, make_prompts):
    rollouts = make_sampler(*models).sample(make_prompts(LENGTHS), seed=0)
    lengths = rollouts.lengths.tolist()
    assert len(set(lengths)) > 3
    assert rollouts.response_ids.shape[1] == max(lengths) <= 20
    for ids, mask, length in zip(rollouts.response_ids, rollouts.response_mask, lengths, strict=True):
        assert mask.tolist() == [True] * length + [False] * (max(lengths) - length)
        assert EOS not in ids[: length - 1]
        assert length == 20 or ids[length - 1] == EOS
        assert ids[length:].eq(EOS).all()


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_no_response_is_longer_than_max_new_tokens(max_new_tokens, models, make_sampler, make_prompts):
    sampler = make_sampler(*models, max_new_tokens=max_new_tokens)
    long = make_sampler(*models).sample(make_prompts(LENGTHS), seed=0)
    short = sampler.sample(make_prompts(LENGTHS), seed=0)
    assert torch.equal(short.lengths, long.lengths.clamp_max(max_new_tokens))
    # a shorter limit gives the beginning of the same responses
    assert torch.equal(short.response_ids, long.response_ids[:, :max_new_tokens])


def test_min_new_tokens(models, make_sampler, make_prompts):
    rollouts = make_sampler(*models, min_new_tokens=15).sample(make_prompts(LENGTHS), seed=0)
    assert rollouts.lengths.min() >= 15
    assert rollouts.lengths.min() < 20


def test_several_ids_may_end_a_response(models, make_sampler, make_prompts):
    rollouts = make_sampler(*models, eos=[EOS, 5, 6, 7, 8, 9]).sample(make_prompts(LENGTHS), seed=0)
    ends = rollouts.response_ids[torch.arange(12), rollouts.lengths - 1]
    assert set(ends.tolist()) & {5, 6, 7, 8, 9}
    assert rollouts.lengths.float().mean() < 10


def test_another_pad_id_changes_nothing_but_the_padding(models, make_sampler, make_prompts):
    same = make_sampler(*models).sample(make_prompts(LENGTHS), seed=0)
    other = make_sampler(*models, pad=36).sample(make_prompts(LENGTHS, pad=36), seed=0)
    mask = same.response_mask
    assert torch.equal(other.response_mask, mask)
    assert torch.equal(other.response_ids[mask], same.response_ids[mask])
    assert other.response_ids[~mask].eq(36).all()
    for name in ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reward_logprobs"):
        assert torch.equal(getattr(other, name), getattr(same, name))
        assert getattr(same, name)[~mask].eq(0).all()


# --- what the sampler returns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "teacher_mix_alpha": 0.5}])
def test_cached_logprobs_equal_a_full_forward(family, options, make_model, make_sampler, make_prompts):
    """Left-padded prompts, rows that leave the batch at different times, sliding windows: all six families."""
    student, teacher = make_model(family, seed=1), make_model(family, seed=2)
    sampler = make_sampler(student, teacher, eos=ENDS, **options)
    prompts = make_prompts(LENGTHS, width=9)
    rollouts = sampler.sample(prompts, seed=0)
    assert len(rollouts.lengths.unique()) > 4
    assert rollouts.lengths.max() > 10
    full = score_responses(
        sampler.student, sampler.teacher, prompts, rollouts.response_ids, rollouts.response_mask, sampler.config
    )
    for name in ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reward_logprobs"):
        torch.testing.assert_close(getattr(rollouts, name), getattr(full, name), rtol=0, atol=1e-4)


def test_students_and_teachers_of_other_families_and_vocabularies(make_model, make_sampler, make_prompts):
    """Qwen2.5's embeddings have other paddings in other sizes: nothing past the shared ids is sampled."""
    student, teacher = make_model("opt", seed=1, vocab_size=40), make_model("qwen2", seed=2, vocab_size=48)
    for pair in ((student, teacher), (teacher, student)):
        rollouts = make_sampler(*pair, teacher_mix_alpha=0.5).sample(make_prompts(LENGTHS), seed=0)
        assert rollouts.response_ids.max() < 40
        # distributions over the shared ids: log q of what was drawn is renormalised there
        assert rollouts.student_logprobs.max() <= 0


@pytest.mark.parametrize("reward_temperature", [1.0, 0.5, None])
def test_the_reward_has_a_temperature_of_its_own(reward_temperature, models, make_sampler, make_prompts):
    sampler = make_sampler(*models, temperature=0.7, teacher_reward_temperature=reward_temperature)
    prompts = make_prompts(LENGTHS)
    rollouts = sampler.sample(prompts, seed=0)
    full = score_responses(*(sampler.student, sampler.teacher), prompts, rollouts.response_ids,
                           rollouts.response_mask, sampler.config)  # fmt: skip
    torch.testing.assert_close(rollouts.reward_logprobs, full.reward_logprobs, rtol=0, atol=1e-4)
    differs = not torch.allclose(rollouts.reward_logprobs, rollouts.teacher_logprobs)
    assert differs is (reward_temperature is not None)


def test_cached_teacher_states_equal_a_fresh_pass(family, make_model, make_sampler, make_prompts):
    student, teacher = make_model("gpt2", seed=1), make_model(family, seed=2)
    sampler = make_sampler(student, teacher, eos=ENDS, keep_teacher_hidden=True)
    rollouts = sampler.sample(make_prompts(LENGTHS, width=8), seed=0)
    mask = rollouts.response_mask
    fresh = response_states(sampler.teacher, rollouts)
    torch.testing.assert_close(rollouts.teacher_hidden[mask], fresh.hidden, rtol=0, atol=1e-4)
    assert rollouts.teacher_hidden[~mask].eq(0).all()


def test_a_model_that_cannot_be_split_samples_the_same(models, make_sampler, make_prompts):
    expected = make_sampler(*models, keep_teacher_hidden=True).sample(make_prompts(LENGTHS), seed=0)
    sampler = make_sampler(*models, keep_teacher_hidden=True)
    for split in (sampler.student, sampler.teacher):
        split.is_split = False
    given = sampler.sample(make_prompts(LENGTHS), seed=0)
    assert torch.equal(given.response_ids, expected.response_ids)
    torch.testing.assert_close(given.student_logprobs, expected.student_logprobs)
    assert given.teacher_hidden.shape[-1] == 37


# --- independence -----------------------------------------------------------------------------------------------------


def by_index(rollouts):
    """Response and log-probabilities of each prompt."""
    values = {}
    for row, index in enumerate(rollouts.indices.tolist()):
        mask = rollouts.response_mask[row]
        values[index] = (rollouts.response_ids[row][mask].tolist(), rollouts.mixture_logprobs[row][mask])
    return values


@pytest.mark.parametrize(
    "rows",
    [[3], [11, 0], [5, 4, 3, 2, 1, 0], list(reversed(range(12)))],
    ids=["alone", "pair", "half", "reversed"],
)
def test_a_response_does_not_depend_on_the_batch(family, rows, make_model, make_sampler, make_prompts):
    sampler = make_sampler(make_model(family, seed=1), make_model(family, seed=2), eos=ENDS)
    prompts = make_prompts(LENGTHS, width=10)
    together = by_index(sampler.sample(prompts, seed=0))
    for index, (ids, logprobs) in by_index(sampler.sample(select_prompts(prompts, torch.tensor(rows)), seed=0)).items():
        assert ids == together[index][0]
        torch.testing.assert_close(logprobs, together[index][1], rtol=0, atol=1e-4)


def test_the_same_seed_and_phase_give_the_same_rollouts(models, make_sampler, make_prompts, same_rollouts):
    sampler, prompts = make_sampler(*models), make_prompts(LENGTHS)
    first = sampler.sample(prompts, seed=3, phase=5)
    torch.rand(100)  # the global random state plays no part
    assert same_rollouts(first, sampler.sample(prompts, seed=3, phase=5))
    for other in ({"seed": 4, "phase": 5}, {"seed": 3, "phase": 6}, {"seed": 5, "phase": 3}):
        assert not torch.equal(sampler.sample(prompts, **other).response_ids[:, :1], first.response_ids[:, :1])


def test_noise_belongs_to_seed_phase_and_prompt():
    indices = torch.tensor([7, 2, 9])
    noise = token_noise(1, 2, indices, 50)
    assert noise.dtype == torch.float64
    assert torch.equal(token_noise(1, 2, indices[[2, 0]], 50), noise[[2, 0]])
    assert torch.equal(token_noise(1, 2, indices, 20), noise[:, :20])
    assert not torch.equal(token_noise(2, 1, indices, 50), noise)
    assert token_noise(0, 0, torch.zeros(0, dtype=torch.int64), 5).shape == (0, 5)


# --- side effects and errors ------------------------------------------------------------------------------------------


def test_sampling_is_without_dropout_and_puts_the_mode_back(make_model, make_sampler, make_prompts):
    student, teacher = make_model("gpt2", seed=1, resid_pdrop=0.5), make_model("gpt2", seed=2)
    sampler, prompts = make_sampler(student, teacher), make_prompts(LENGTHS)
    expected = sampler.sample(prompts, seed=0)
    student.train()
    given = sampler.sample(prompts, seed=0)
    assert student.training
    assert not teacher.training
    assert torch.equal(given.student_logprobs, expected.student_logprobs)
    assert not given.student_logprobs.requires_grad


def test_the_mode_comes_back_after_an_error(models, make_sampler, make_prompts, monkeypatch):
    student, _ = models
    sampler = make_sampler(student)
    monkeypatch.setattr(sampler, "_draw", lambda *args: 1 / 0)
    student.train()
    with pytest.raises(ZeroDivisionError):
        sampler.sample(make_prompts(LENGTHS), seed=0)
    assert student.training
    student.eval()


def test_an_empty_prompt_is_an_error(models, make_sampler, make_prompts):
    prompts = make_prompts((3, 2))
    prompts.attention_mask[1] = False
    with pytest.raises(ValueError, match="a prompt is empty"):
        make_sampler(*models).sample(prompts, seed=0)


def test_responses_past_the_last_position_are_an_error_before_any_work(
    family, models, make_model, make_sampler, make_prompts
):
    """GPT-2 would end in an index error, in the middle of a phase."""
    short = make_model(family, seed=1, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 20})
    prompts = make_prompts((9, 2), width=12)
    for pair in ((short, None), (models[0], short)):
        assert make_sampler(*pair, min_new_tokens=12, max_new_tokens=12).sample(prompts, seed=0).lengths.max() == 12
        name = "student" if pair[0] is short else "teacher"
        with pytest.raises(ValueError, match=f"need 21 positions, and the {name} has 20: lower max_new_tokens"):
            make_sampler(*pair, max_new_tokens=13).sample(prompts, seed=0)


def test_a_mixture_needs_a_teacher(models, make_sampler):
    with pytest.raises(ValueError, match="pass a teacher or set teacher_mix_alpha=0"):
        make_sampler(models[0], teacher_mix_alpha=0.2)


def test_a_student_that_has_diverged_is_an_error_with_its_rows(make_model, make_sampler, make_prompts):
    """And no index out of range, which on a GPU would end the process."""
    student = make_model("gpt2", seed=1)
    sampler = make_sampler(student)
    student.transformer.wpe.weight.data[6] = float("nan")  # only prompts of 7 tokens and longer responses reach it
    with pytest.raises(FloatingPointError, match=r"not a number on the rows \[2, 7\]"):
        make_sampler(student, max_new_tokens=1).sample(make_prompts(LENGTHS), seed=0)
    with pytest.raises(FloatingPointError, match="student"):
        sampler.sample(make_prompts(LENGTHS), seed=0)


# --- no repeated n-grams ----------------------------------------------------------------------------------------------


def ngrams(ids, size):
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]


def repeated(rollouts, size):
    """How many n-grams that end in a response were there before."""
    count = 0
    for row in range(len(rollouts)):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist()
        grams = ngrams(prompt + rollouts.response_ids[row][rollouts.response_mask[row]].tolist(), size)
        new = max(len(prompt) - size + 1, 0)
        count += sum(gram in grams[:place] for place, gram in enumerate(grams[new:], start=new))
    return count


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.3},
        {"temperature": 0.0, "teacher_mix_alpha": 0.0},
        {"temperature": 0.3, "teacher_mix_alpha": 1.0},
    ],
)
def test_no_ngram_of_prompt_and_response_is_sampled_again(size, options, models, make_sampler, make_prompts):
    """Also greedily, where these models repeat themselves, and from the teacher."""
    options = {"max_new_tokens": 25, **options}
    plain = make_sampler(*models, **options).sample(make_prompts(LENGTHS), seed=0)
    free = make_sampler(*models, no_repeat_ngram_size=size, **options).sample(make_prompts(LENGTHS), seed=0)
    assert repeated(plain, size) > 0
    assert repeated(free, size) == 0


@pytest.mark.parametrize("size", [2, 3])
def test_greedy_decoding_without_repetition_is_the_models_own(size, make_model, make_sampler, make_prompts):
    """Prompts of one length: transformers takes padding for tokens, and we do not."""
    model, prompts = make_model("gpt2", seed=1), make_prompts((5,) * 8)
    full = model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        do_sample=False,
        max_new_tokens=20,
        no_repeat_ngram_size=size,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    sampler = make_sampler(model, temperature=0.0, max_new_tokens=20, no_repeat_ngram_size=size)
    given = sampler.sample(prompts, seed=0)
    assert torch.equal(given.response_ids, full[:, 5:])
    assert repeated(make_sampler(model, temperature=0.0, max_new_tokens=20).sample(prompts, seed=0), size) > 0


def test_no_repetition_does_not_depend_on_padding_and_batch(models, make_sampler, make_prompts):
    """With rows that leave the batch at many different times."""
    sampler = make_sampler(*models, eos=ENDS, no_repeat_ngram_size=2)
    together = sampler.sample(make_prompts(LENGTHS, width=15), seed=0)
    assert len(together.lengths.unique()) > 4
    for row in range(len(LENGTHS)):
        alone = sampler.sample(select_prompts(make_prompts(LENGTHS), torch.tensor([row])), seed=0)
        mask = together.response_mask[row]
        assert torch.equal(alone.response_ids[0], together.response_ids[row][mask])
        torch.testing.assert_close(alone.mixture_logprobs[0], together.mixture_logprobs[row][mask])


def test_only_the_mixture_knows_of_banned_ngrams(models, make_sampler, make_prompts):
    """Student and teacher log-probabilities are those of the whole distributions."""
    sampler = make_sampler(*models, no_repeat_ngram_size=1, max_new_tokens=12)
    prompts = make_prompts(LENGTHS)
    rollouts = sampler.sample(prompts, seed=0)
    full = score_responses(
        sampler.student, sampler.teacher, prompts, rollouts.response_ids, rollouts.response_mask, sampler.config
    )
    for name in ("student_logprobs", "teacher_logprobs", "reward_logprobs"):
        torch.testing.assert_close(getattr(rollouts, name), getattr(full, name), rtol=0, atol=1e-4)
    mask = rollouts.response_mask
    gained = rollouts.mixture_logprobs[mask] - full.mixture_logprobs[mask]
    assert gained.max() > 0.1  # what was banned went to the rest
    assert rollouts.mixture_logprobs[mask].isfinite().all()


def test_a_response_may_end_where_only_its_end_would_be_left(models, make_sampler, make_prompts):
    """Longer than the vocabulary: when nothing new is left, the response goes on, with numbers."""
    options = {"no_repeat_ngram_size": 1, "min_new_tokens": 50, "max_new_tokens": 50}
    rollouts = make_sampler(*models, **options).sample(make_prompts(LENGTHS), seed=0)
    assert rollouts.lengths.min() == 50
    assert not rollouts.response_ids[:, :49].eq(EOS).any()
    assert rollouts.mixture_logprobs.isfinite().all()
