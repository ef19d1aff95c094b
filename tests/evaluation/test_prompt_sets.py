import pytest

from lightning_minillm.data import PlainTemplate
from lightning_minillm.evaluation import PromptSets, named_sources
from lightning_minillm.rollout import SamplingConfig


def make(sources, seeds=(1, 2), **sampling):
    config = SamplingConfig(**{"max_new_tokens": 4, "teacher_mix_alpha": 0.0, **sampling})
    return PromptSets(sources, PlainTemplate(), config, batch_size=2, seeds=seeds, max_length=24, max_prompt_length=12)


def test_items_are_the_rows_of_all_data_sets_for_each_seed(words, tokenizer):
    prompts = make({"a": words(3), "b": words(2)}, seeds=(7, 5))
    prompts.prepare(tokenizer)
    assert prompts.num_rows == 5
    assert sorted(item for items in prompts.batches() for item in items) == list(range(10))
    assert prompts.find([2, 0]) == (7, "a", [2, 0])
    assert prompts.find([9]) == (5, "b", [1])


@pytest.mark.parametrize("items", [[10], [-1], [4, 5], [2, 3]])
def test_items_of_no_seed_or_of_several_are_refused(items, words, tokenizer):
    prompts = make({"a": words(3), "b": words(2)})
    prompts.prepare(tokenizer)
    with pytest.raises(IndexError, match="items must be in"):
        prompts.find(items)


def test_prompts_that_are_too_long_are_counted(words, tokenizer):
    prompts = PromptSets(
        {"a": words(12)}, PlainTemplate(), SamplingConfig(teacher_mix_alpha=0.0), max_length=24, max_prompt_length=4
    )
    with pytest.warns(UserWarning, match=r"a: \d+ of 12 prompts have more than max_prompt_length=4 tokens"):
        prompts.prepare(tokenizer)
    assert prompts.num_dropped == 12 - prompts.num_rows > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, r"at least one, such as \[10, 20\], got \[\]"),
        ({"seeds": (1, 1)}, r"different sampling seeds.*got \[1, 1\]"),
        ({"teacher_mix_alpha": 0.5}, "teacher_mix_alpha=0, got 0.5"),
        ({"sources": {}}, "there is no data set"),
    ],
)
def test_mistakes_are_named(options, message, words):
    with pytest.raises(ValueError, match=message):
        make(**{"sources": {"test": words()}, **options})


def test_missing_data_is_named(words, tokenizer):
    sources = named_sources({"sni": "./nowhere.jsonl"}, words())
    with pytest.raises(ValueError, match=r"sni.*nowhere.jsonl"):
        make(sources).prepare(tokenizer)


def test_the_source_without_files_is_named_after_its_split(words):
    source = words()
    assert named_sources({}, source, split="validation") == {"validation": source}
