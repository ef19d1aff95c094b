from typing import ClassVar

import pytest

from lightning_minillm.data import InstructionRecord, PlainTemplate, load_instructions
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.evaluation import GenerationEvaluation, PromptSets
from lightning_minillm.evaluation.generation import MARKED
from lightning_minillm.files import write_json_lines
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig, decode_responses, sampler_for


@pytest.fixture(scope="module")
def pair(make_model, make_pair):
    return make_pair(make_model("gpt2", seed=1))


@pytest.fixture
def make(tokenizer, words):
    """``make(sources=None, seeds=(3,), **options)``: a prepared evaluation."""

    def make(sources=None, seeds=(3,), **options):
        sampling = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=0.0)
        lengths = {"max_length": 32, "max_prompt_length": 16, "batch_size": 4}
        prompts = PromptSets(sources or {"train": words(6)}, PlainTemplate(), sampling, seeds=seeds, **lengths)
        evaluation = GenerationEvaluation(prompts, **options)
        evaluation.prepare(tokenizer)
        return evaluation

    return make


def test_samples_are_those_of_the_phases_of_the_sampler(make, pair, run_all):
    evaluation = make(num_samples=2)
    records = run_all(evaluation, pair)
    data = evaluation.prompts.data["train"]
    sampler = sampler_for(pair, evaluation.prompts.sampling)
    rollouts = [sampler.sample(data.prompt_batch(range(6)), seed=3, phase=phase) for phase in (0, 1)]
    assert [record["output"] for record in records] == [
        text for batch in rollouts for text in decode_responses(pair.tokenizer, batch)
    ]
    assert [(record["sample"], record["row"]) for record in records] == [(s, row) for s in (0, 1) for row in range(6)]
    assert [record["tokens"] for record in records] == [n for batch in rollouts for n in batch.lengths.tolist()]
    assert [record["instruction"] for record in records[:6]] == [record.instruction for record in data.records]


def test_unfinished_and_empty_responses_are_kept_only_on_request(make):
    rows = [
        {"item": 0, "output": "a", "tokens": 2, "finished": True},
        {"item": 1, "output": "b", "tokens": 6, "finished": False},
        {"item": 2, "output": "", "tokens": 1, "finished": True},
    ]
    few, all_of_them = make(), make(keep_unfinished=True)
    assert few.findings(rows).values == {"responses": [1], "unfinished": [1], "mean_length": [2.0]}
    assert all_of_them.findings(rows).values == {"responses": [3], "unfinished": [1], "mean_length": [3.0]}
    assert few.texts(rows) == {"responses": [{"output": "a", "tokens": 2, "finished": True}]}
    assert few.identity() == all_of_them.identity()  # the records are the same
    with pytest.raises(ValueError, match=r"none of the 2 responses ended by itself.*keep_unfinished=true"):
        few.findings(rows[1:])


def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        make(num_samples=0)
    with pytest.raises(ValueError, match=r"one seed for one data set, got seeds \[1, 2\]"):
        make(seeds=(1, 2))
    with pytest.raises(ValueError, match="data sets a, b"):
        make(sources={"a": words(2), "b": words(2)})


def test_special_tokens_are_counted_and_written_on_request(make, make_tokenizer, make_model, run_all):
    """Either text comes from the same records; the tokens that end a response are in none."""
    tokenizer = make_tokenizer(words=36)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert tokenizer.convert_tokens_to_ids("<think>") == 36
    pair = ModelPair(make_model("gpt2", seed=1), tokenizer, None)
    plain, marked = (
        make(num_samples=20, keep_unfinished=True),
        make(num_samples=20, keep_unfinished=True, keep_special_tokens=True),
    )
    records = run_all(plain, pair)
    assert plain.identity() == marked.identity()
    count = sum(MARKED in record for record in records)
    assert 0 < count < len(records)
    assert plain.findings(records).values["with_special_tokens"] == [count]
    for row, other, record in zip(
        *(each.texts(records)["responses"] for each in (plain, marked)), records, strict=True
    ):
        assert ("<think>" in other["output"]) == (MARKED in record)
        assert "<think>" not in row["output"]
        assert "<eos>" not in other["output"]
        assert other["output"].replace("<think>", " ").split() == row["output"].split()
        ids = tokenizer(other["output"], add_special_tokens=False).input_ids
        assert len(ids) == other["tokens"] - other["finished"]  # and so training sees the same tokens
        assert other["output_ids"][: len(ids)] == ids
        assert row.keys() == other.keys() - {"output_ids"} == record.keys() - {"item", MARKED, "output_ids"}


def test_a_response_of_special_tokens_alone_is_not_empty_when_they_are_kept(make):
    rows = [{"item": 0, "output": "", MARKED: "<think>", "tokens": 2, "finished": True}]
    assert make(keep_special_tokens=True).findings(rows).values["responses"] == [1]
    with pytest.raises(ValueError, match="none of the 1 responses"):
        make().findings(rows)


class Talks:
    """A source of conversations, one with a tool."""

    tool: ClassVar = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

    def load(self):
        turns = (Turn("system", "Be brief."), Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"))
        talks = [Conversation((*turns, Turn("assistant", "4"))), Conversation((turns[1], turns[2]), (self.tool,))]
        return [InstructionRecord(talk.prompt_text(), "", (talk.response_text(),), conversation=talk) for talk in talks]


def test_conversations_are_written_as_messages_that_are_read_again(tmp_path, make_chat_tokenizer, make_model, run_all):
    tokenizer = make_chat_tokenizer()
    sampling = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=0.0, temperature=3.0)
    prompts = PromptSets({"train": Talks()}, "chat", sampling, seeds=(1,), max_length=400, max_prompt_length=300)
    evaluation = GenerationEvaluation(prompts, num_samples=3, keep_unfinished=True)
    evaluation.prepare(tokenizer)
    pair = ModelPair(make_model("gpt2", vocab_size=len(tokenizer), n_positions=512), tokenizer, None)
    rows = evaluation.texts(run_all(evaluation, pair))["responses"]
    given = [record.conversation for record in Talks().load()]
    for row in rows:
        talk = given[row["row"]]
        assert row["messages"][:-1] == talk.messages()[:-1]
        assert row["messages"][-1]["role"] == "assistant"
        assert row.get("tools", []) == list(talk.tools)
        assert row.keys() - {"tools"} == {"messages", "task", "exact", "row", "sample", "tokens", "finished"}
    write_json_lines(tmp_path / "talks.jsonl", rows)
    for record, row in zip(load_instructions(tmp_path / "talks.jsonl"), rows, strict=True):
        assert record.responses == (row["messages"][-1]["content"],)
        assert record.conversation.turns[:-1] == given[row["row"]].turns[:-1]
        assert record.conversation.tools == given[row["row"]].tools


def test_a_conversation_needs_a_response(make):
    row = {"item": 0, "output": "", "tokens": 1, "finished": True, "messages": [{"role": "user", "content": "1"}]}
    with pytest.raises(ValueError, match="none of the 1 responses"):
        make(keep_unfinished=True).findings([row])
