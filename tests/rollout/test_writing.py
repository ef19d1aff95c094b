"""Who writes, and where a response ends."""

import pytest
import torch

from lightning_minillm.models import ModelPair, ModelWithTokenizer
from lightning_minillm.rollout import SamplingConfig, are_finished, sampler_for

LENGTHS = (5, 3, 7, 1, 4, 6, 2, 7)


def sampled(pair, prompts, **options):
    config = SamplingConfig(**{"teacher_mix_alpha": 0.0, "max_new_tokens": 12, **options})
    rollouts = sampler_for(pair, config).sample(prompts, seed=0)
    return rollouts, are_finished(pair, config, rollouts)


@pytest.mark.parametrize("configured", [0, [0, 5], [5, 9, 11]])
@pytest.mark.parametrize("named", [(), ("w7",), (8, "w7")])
def test_a_response_ends_at_any_of_its_ends(make_model, make_prompts, tokenizer, configured, named):
    model = make_model("gpt2", seed=1)
    model.generation_config.eos_token_id = configured
    ends = {0, *(configured if isinstance(configured, list) else [configured]), *({7} if "w7" in named else ())}
    ends |= {8} if 8 in named else set()
    rollouts, finished = sampled(ModelPair(model, tokenizer), make_prompts(LENGTHS * 4), eos_token_ids=named)
    assert 0 < sum(finished) < len(finished)
    seen = set()
    for ids, mask, done in zip(rollouts.response_ids, rollouts.response_mask, finished, strict=True):
        written = ids[mask].tolist()
        assert ends.isdisjoint(written[:-1])
        assert done == (written[-1] in ends)
        assert done or len(written) == 12
        seen |= {written[-1]} & ends
    assert len(seen) > 1 or ends == {0}


@pytest.mark.parametrize("named", [(), ("<|im_end|>",)])
@pytest.mark.parametrize("from_tokenizer", [True, False])
def test_a_response_of_a_pair_ends_at_the_end_of_either(
    make_model, make_prompts, make_special_tokenizer, from_tokenizer, named
):
    """A base student, and a teacher whose text ends otherwise by its tokenizer or its generation config."""
    student, teacher = (make_model(family, seed=1, vocab_size=30) for family in ("gpt2", "llama"))
    if from_tokenizer:
        teacher = ModelWithTokenizer(teacher, make_special_tokenizer(eos="<|im_end|>"))
    else:
        teacher.generation_config.eos_token_id = [0, 2]
    with pytest.warns(UserWarning, match="either ends") if from_tokenizer else torch.no_grad():
        pair = ModelPair(student, make_special_tokenizer(), teacher)
    assert set(pair.end_ids(named)) == {0, 2}
    rollouts, finished = sampled(pair, make_prompts(LENGTHS * 8, vocab_size=30), eos_token_ids=named)
    last = rollouts.response_ids.gather(1, rollouts.lengths[:, None] - 1)[:, 0]
    assert {0, 2} <= set(last.tolist())
    assert finished == [token in (0, 2) for token in last.tolist()]


def test_an_end_that_no_model_can_write_is_left_out(make_model, tokenizer):
    model = make_model("gpt2")
    model.generation_config.eos_token_id = [0, 50256]
    assert ModelPair(model, tokenizer).end_ids() == (0,)


def test_an_end_that_only_one_model_knows_is_left_out(make_model, make_special_tokenizer):
    student = make_model("gpt2", vocab_size=32, eos_token_id=None)
    teacher = ModelWithTokenizer(make_model("gpt2", vocab_size=32, eos_token_id=None), make_special_tokenizer())
    with pytest.warns(UserWarning, match="tokenizers of student and teacher differ"):
        pair = ModelPair(student, make_special_tokenizer(eos="<end>", added=["<end>"]), teacher)
    assert pair.end_ids() == (0,)  # the teacher's


def test_without_an_end_no_response_could_end(make_model, make_special_tokenizer):
    tokenizer = make_special_tokenizer(eos="<end>", added=["<end>"])
    pair = ModelPair(make_model("gpt2", vocab_size=30, eos_token_id=None), tokenizer)
    with pytest.raises(ValueError, match=r"none of the ids \[30\] .*: name one in sampling\.eos_token_ids"):
        pair.end_ids()
    assert pair.end_ids(["w7"]) == (7,)
