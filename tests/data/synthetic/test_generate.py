from collections import Counter, defaultdict
from random import Random

import pytest

from lightning_minillm.data import SyntheticSource, generate_corpus, generate_records
from lightning_minillm.data.synthetic import generate
from lightning_minillm.data.synthetic.generate import SPLITS, TASKS, Task, split_of
from lightning_minillm.data.synthetic.tasks import _DAYS, _NOTES, _REVIEWS, _STORIES, Draft
from lightning_minillm.data.synthetic.world import NUMBERS, PLACES, build_world, pick, pick_several


@pytest.fixture(scope="module")
def train():
    return generate_records("train", 3000)


def test_splits_do_not_overlap(train):
    prompts = {
        split: {(r.instruction, r.input) for r in generate_records(split, 600, seed)}
        for split in SPLITS
        for seed in (0, 1)
    }
    prompts["train"] |= {(r.instruction, r.input) for r in train}
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["validation"] & prompts["test"]
    for split, found in prompts.items():
        assert {split_of(*prompt) for prompt in found} == {split}


def test_same_seed_same_records_and_a_limit_is_a_beginning(train):
    assert generate_records("train", 200) == train[:200]
    assert generate_records("train", 50, seed=1) != train[:50]
    assert SyntheticSource("train", limit=50).load() == train[:50]
    assert generate_records("train", 50, world_seed=1) != train[:50]


def test_prompts_of_a_split_differ(train):
    assert len({(r.instruction, r.input) for r in train}) == len(train)


def test_all_tasks_occur_and_only_exact_ones_have_one_answer(train):
    counts = Counter(record.task for record in train)
    assert set(counts) == {task.name for task in TASKS}
    assert min(counts.values()) > 60
    assert {record.task for record in train if record.exact} == {task.name for task in TASKS if task.exact}
    test = generate_records("test", 200)
    for record in test:
        assert len(record.responses) == (1 if record.exact else 4)
    several = [len(set(record.responses)) for record in test if not record.exact]
    assert sum(count > 1 for count in several) > 0.8 * len(several)


def test_facts_agree_over_the_whole_set(train):
    """A thing has one colour wherever its colour is told as a fact of the world."""
    colors = defaultdict(set)
    for record in train:
        if record.task == "fact" and record.input.startswith("What color"):
            colors[record.responses[0].split()[1]].add(record.responses[0].split()[-1].rstrip("."))
        if record.task == "describe":
            words = record.responses[0].split()
            colors[words[1]].add(words[5])
    assert len(colors) == 60
    assert all(len(found) == 1 for found in colors.values())


@pytest.mark.parametrize(
    ("task", "plans"),
    [
        ("story", [(w, *v, *r, *e) for w, v, r, e in _STORIES.values()]),
        ("review", [(a, o, *p) for a, o, _, p in _REVIEWS.values()]),
        ("note", [(m, c) for _, m, c in _NOTES.values()]),
        ("plan", [(*a, *b, *c) for a, b, c in _DAYS.values()]),
        ("describe", list(PLACES.values())),
    ],
)
def test_the_parts_of_a_response_follow_one_plan(train, task, plans):
    for record in (record for record in train if record.task == task):
        used = [number for number, parts in enumerate(plans) if any(part in record.responses[0] for part in parts)]
        assert len(used) == 1, record


def test_one_right_answer_is_right(train):
    value = {word: number for number, word in enumerate(NUMBERS)}
    for record in train:
        answer = record.responses[0]
        if record.task == "reverse":
            assert answer.split(", ") == record.input.split(", ")[::-1]
        if record.task == "total":
            words = record.input.rstrip(".").split()
            assert value[answer.split()[2]] == value[words[2]] + value[words[-2]]
        if record.task == "odd_one_out":
            assert answer.split()[1] in record.input.split(", ")


def test_choices_follow_zipf():
    rng = Random(0)
    counts = Counter(pick("abcd", rng) for _ in range(20000))
    weights = [rank**-1.5 for rank in (1, 2, 3, 4)]
    for letter, weight in zip("abcd", weights, strict=True):
        assert counts[letter] / 20000 == pytest.approx(weight / sum(weights), abs=0.015)
    assert all(len(set(pick_several("abcd", 3, rng))) == 3 for _ in range(100))


def test_worlds_are_functions_of_their_seed():
    build_world.cache_clear()
    first = build_world(0)
    build_world.cache_clear()
    assert build_world(0) == first
    assert build_world(1) != first


def test_corpus_documents(train):
    documents = generate_corpus(100)
    assert documents == generate_corpus(200)[:100]
    assert all(document and "\n" not in document for document in documents)


def test_errors():
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'dev'"):
        generate_records("dev", 1)
    with pytest.raises(ValueError, match="at least 1"):
        generate_records("train", 0)
    with pytest.raises(ValueError, match="at least 1"):
        generate_corpus(0)


def test_a_task_that_runs_out_of_prompts_repeats_them(monkeypatch):
    task = Task("one", lambda world, rng: Draft("Only.", "", lambda rng: "Yes."), True, 1.0)
    monkeypatch.setattr(generate, "TASKS", (task,))
    found = generate_records(split_of("Only.", ""), 3)
    assert [record.instruction for record in found] == ["Only."] * 3
