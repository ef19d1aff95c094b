import gzip
import json
from dataclasses import replace

import pytest
import torch

from lightning_minillm.data import (
    AlpacaTemplate,
    Conversation,
    EncodedInstructions,
    InstructionRecord,
    InstructionSource,
    Lengths,
    PlainTemplate,
    Turn,
    encode_records,
    load_instructions,
)
from lightning_minillm.data.cache import tokenizer_fingerprint
from lightning_minillm.rollout.scoring import given_responses

LENGTHS = Lengths(96, 64)


@pytest.fixture(scope="module")
def encoded(records, tokenizer):
    return EncodedInstructions(records, tokenizer, PlainTemplate(), LENGTHS)


def test_tokens_are_prompt_response_eos(encoded, records, tokenizer):
    batch = encoded.token_batch(range(len(encoded)), normalizer=7.0)
    assert batch.normalizer == 7.0
    assert batch.indices.tolist() == list(range(len(records)))
    for row, record in enumerate(records):
        prompt = PlainTemplate().format(record.instruction, record.input)
        ids = batch.input_ids[row][batch.attention_mask[row]]
        targets = batch.input_ids[row][batch.target_mask[row]]
        assert tokenizer.decode(ids) == prompt + record.responses[0] + tokenizer.eos_token
        assert tokenizer.decode(targets) == record.responses[0] + tokenizer.eos_token


def test_pad_equals_eos_and_masks_come_from_lengths(encoded, tokenizer):
    assert encoded.pad_token_id == encoded.eos_token_id == tokenizer.eos_token_id
    batch = encoded.token_batch(range(len(encoded)), normalizer=1.0)
    assert torch.equal(batch.attention_mask.sum(1), encoded.lengths)
    assert torch.equal(batch.target_mask.sum(1), encoded.target_counts)
    assert not batch.target_mask[:, 0].any()
    assert not (batch.target_mask & ~batch.attention_mask).any()
    last = encoded.lengths - 1
    rows = torch.arange(len(encoded))
    assert (batch.input_ids[rows, last] == tokenizer.eos_token_id).all()
    assert batch.target_mask[rows, last].all()  # the eos is learned, the padding after it is not
    assert (batch.input_ids[~batch.attention_mask] == tokenizer.pad_token_id).all()


def test_prompts_are_left_padded_prefixes_of_the_pairs(encoded):
    rows = [5, 0, 17]
    prompts, pairs = encoded.prompt_batch(rows), encoded.token_batch(rows, 1.0)
    assert prompts.indices.tolist() == rows
    assert prompts.attention_mask[:, -1].all()
    for row in range(3):
        prompt = prompts.input_ids[row][prompts.attention_mask[row]]
        assert torch.equal(prompt, pairs.input_ids[row][pairs.attention_mask[row] & ~pairs.target_mask[row]])
        assert (prompts.attention_mask[row].int().diff() >= 0).all()


def test_row_order_and_company_change_nothing(encoded):
    alone = {row: encoded.token_batch([row], 1.0) for row in range(6)}
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3, 1], torch.tensor([2, 4])):
        batch = encoded.token_batch(rows, 1.0)
        for place, row in enumerate(batch.indices.tolist()):
            keep = batch.attention_mask[place]
            assert torch.equal(batch.input_ids[place][keep], alone[row].input_ids[0])
            assert torch.equal(batch.target_mask[place][keep], alone[row].target_mask[0])


def test_batches_are_trimmed_to_their_longest_row(encoded):
    shortest = int(encoded.lengths.argmin())
    assert encoded.token_batch([shortest], 1.0).input_ids.shape == (1, int(encoded.lengths.min()))


def test_long_prompts_are_dropped_and_counted(records, tokenizer):
    long = replace(records[3], instruction=records[3].instruction * 20)
    mixed = [records[0], long, records[1], long]
    encoded = EncodedInstructions(mixed, tokenizer, PlainTemplate(), LENGTHS)
    assert (len(encoded), encoded.num_dropped) == (2, 2)
    assert encoded.records == (records[0], records[1])
    assert encoded.evaluation_batch([1]).references == (records[1].responses,)


def test_long_responses_are_cut_without_eos(records, tokenizer):
    long = replace(records[0], responses=("word " * 200,))
    encoded = EncodedInstructions([long, records[1]], tokenizer, PlainTemplate(), LENGTHS)
    assert encoded.num_truncated == 1
    assert encoded.lengths[0] == 96
    batch = encoded.token_batch([0], 1.0)
    assert tokenizer.eos_token_id not in batch.input_ids
    # A response that just fits keeps its eos, one token less cuts it.
    exact = int(encoded.lengths[1])
    for max_length, cut in ((exact, 0), (exact - 1, 1)):
        tight = EncodedInstructions([records[1]], tokenizer, PlainTemplate(), Lengths(max_length, exact - 2))
        assert (tight.num_truncated, int(tight.lengths[0])) == (cut, max_length)


def test_an_empty_response_is_one_eos(records, tokenizer):
    encoded = EncodedInstructions([replace(records[0], responses=("",))], tokenizer, PlainTemplate(), LENGTHS)
    assert encoded.target_counts.tolist() == [1]


def test_a_seam_that_merges_keeps_the_prompt_whole(tokenizer):
    class Seamless:
        def format(self, instruction, input):
            return instruction

    record = InstructionRecord("The fox has col", "", ("or and the fox",))
    encoded = EncodedInstructions([record], tokenizer, Seamless(), LENGTHS)
    prompt = encoded.prompt_batch([0])
    batch = encoded.token_batch([0], 1.0)
    assert tokenizer.decode(prompt.input_ids[0]) == "The fox has col"
    assert tokenizer.decode(batch.input_ids[0][batch.target_mask[0]]) == "or and the fox" + tokenizer.eos_token


def test_evaluation_batch(encoded, records):
    batch = encoded.evaluation_batch([2, 0])
    assert batch.references == (records[2].responses, records[0].responses)
    assert batch.tasks == (records[2].task, records[0].task)
    assert batch.exact == (records[2].exact, records[0].exact)
    assert batch.prompt_texts[0].startswith(records[2].instruction)
    assert torch.equal(batch.prompts.indices, batch.tokens.indices)
    assert batch.tokens.normalizer == batch.tokens.target_mask.sum()
    assert batch.to("cpu").tokens.input_ids.equal(batch.tokens.input_ids)


def test_errors(records, tokenizer, encoded):
    with pytest.raises(ValueError, match="max_length=64 must be greater than max_prompt_length=64"):
        Lengths(64, 64)
    with pytest.raises(ValueError, match="max_prompt_length must be at least 1"):
        Lengths(64, 0)
    with pytest.raises(ValueError, match="each of the 40 prompts has more than max_prompt_length=3"):
        EncodedInstructions(records, tokenizer, PlainTemplate(), Lengths(64, 3))
    with pytest.raises(ValueError, match="the split is empty"):
        EncodedInstructions([], tokenizer, PlainTemplate(), LENGTHS)
    with pytest.raises(IndexError, match=r"\[0, 40\)"):
        encoded.prompt_batch([40])
    with pytest.raises(ValueError, match="at least one row"):
        encoded.token_batch([], 1.0)


def test_encode_records_counts_what_it_drops_and_truncates(records, tokenizer, caplog):
    long_prompt = replace(records[0], instruction="word " * 200)
    long_response = replace(records[0], responses=("word " * 200,))
    mixed = [long_prompt, long_response, records[1]]
    with (
        pytest.warns(
            UserWarning, match="dolly: 1 of 3 prompts have more than max_prompt_length=64 tokens and are dropped"
        ),
        caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"),
    ):
        encoded = encode_records("dolly", mixed, tokenizer, PlainTemplate(), Lengths(96, 64))
    assert len(encoded) == 2
    assert "dolly: 2 records" in caplog.text
    assert "1 responses truncated at max_length=96" in caplog.text


def test_encode_records_names_the_data_set_in_errors(tokenizer, tmp_path):
    for source, message in ((InstructionSource(str(tmp_path / "a.jsonl")), "there is no data file"), ([], "is empty")):
        with pytest.raises(ValueError, match=f"^dolly: .*{message}"):
            encode_records("dolly", source, tokenizer, PlainTemplate(), Lengths())


def test_a_tokenizer_without_eos_is_refused(records):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(ValueError, match="no eos token"):
        EncodedInstructions(records, bare, PlainTemplate(), LENGTHS)


def test_cache_gives_the_same_batches(records, tokenizer, tmp_path):
    def make(**kwargs):
        settings = {"records": records, "template": PlainTemplate(), "lengths": LENGTHS} | kwargs
        settings["lengths"] = replace(settings["lengths"], cache_dir=tmp_path)
        return EncodedInstructions(tokenizer=tokenizer, **settings)

    long = [*records, replace(records[0], instruction="x " * 300)]
    first, second = make(records=long), make(records=long)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.num_dropped == second.num_dropped == 1
    built, read = first.token_batch(range(40), 1.0), second.token_batch(range(40), 1.0)
    assert torch.equal(built.input_ids, read.input_ids)
    assert torch.equal(built.target_mask, read.target_mask)
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]
    # Anything that matters makes a new file.
    changed = [replace(records[0], responses=("Other.",)), *records[1:]]
    assert not make().from_cache
    assert not make(template=PlainTemplate(cue="=\n")).from_cache
    assert not make(lengths=Lengths(97, 64)).from_cache
    assert not make(lengths=Lengths(96, 63)).from_cache
    assert not make(records=changed).from_cache
    assert not make(records=records[::-1]).from_cache


def test_tokenizer_fingerprint_survives_a_padded_call(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bb bb bb"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("name", ["gpt2", "tinyllama", "qwen1.5"])
def test_real_tokenizers_on_real_records(real_data, name):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    some = load_instructions(real_data / "dolly" / "dev.jsonl", limit=60)
    encoded = EncodedInstructions(some, real, AlpacaTemplate(), Lengths(512, 256))
    batch = encoded.token_batch(range(len(encoded)), 1.0)
    for row, record in enumerate(encoded.records):
        targets = batch.input_ids[row][batch.target_mask[row]]
        if targets[-1] == real.eos_token_id:
            assert real.decode(targets[:-1]).strip() == record.responses[0].strip()
        prompt = batch.input_ids[row][batch.attention_mask[row] & ~batch.target_mask[row]]
        assert real.decode(prompt).endswith("### Response:\n")
        assert prompt.tolist() == real(encoded.prompt_text(row)).input_ids  # with its begin token, if it uses one


def test_gpt2_lengths_equal_the_official_counts(real_data):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "gpt2")
    file = real_data / "dolly" / "train.jsonl.gz"
    some = load_instructions(file, limit=200)
    encoded = EncodedInstructions(some, real, AlpacaTemplate(), Lengths(10_000, 256))
    assert encoded.num_dropped == 0
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        rows = [json.loads(next(handle)) for _ in range(200)]
    prompts = encoded.prompt_batch(range(200)).attention_mask.sum(1)
    assert prompts.tolist() == [row["n_prompt_tok"] for row in rows]
    assert encoded.target_counts.tolist() == [row["n_resp_tok"] for row in rows]


def talk(number, turns):
    """A conversation whose texts depend on the number and the place."""
    texts = [f"question {number} {place}?" if place % 2 == 0 else f"answer {number}-{place}." for place in range(turns)]
    roles = ("user", "assistant") * turns
    found = Conversation(tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False)))
    return InstructionRecord(found.prompt_text(), "", (found.response_text(),), conversation=found)


@pytest.fixture
def talks():
    return [talk(number, 2 + 2 * (number % 3)) for number in range(6)]


@pytest.mark.parametrize("targets", ["all", "last"])
def test_targets_of_conversations_do_not_depend_on_company(talks, make_chat_tokenizer, targets, tmp_path):
    tokenizer = make_chat_tokenizer()
    for _ in range(2):  # built, and from the cache
        rows = EncodedInstructions(talks, tokenizer, None, Lengths(512, 256, cache_dir=tmp_path), targets=targets)
        together = rows.token_batch(range(6), 1.0)
        assert torch.equal(together.target_mask.sum(1), rows.target_counts)
        assert not (together.target_mask & ~together.attention_mask).any()
        for row in range(6):
            alone, keep = rows.token_batch([row], 1.0), together.attention_mask[row]
            assert torch.equal(together.input_ids[row][keep], alone.input_ids[0])
            assert torch.equal(together.target_mask[row][keep], alone.target_mask[0])
            written = tokenizer.decode(alone.input_ids[0][alone.target_mask[0]]).split("<|im_end|>")[:-1]
            answers = [turn.content for turn in talks[row].conversation.turns if turn.role == "assistant"]
            assert written == (answers if targets == "all" else answers[-1:])
    assert rows.from_cache


def test_the_response_of_a_conversation_is_its_last_turn(talks, make_chat_tokenizer):
    tokenizer = make_chat_tokenizer()
    rows = EncodedInstructions(talks, tokenizer, "chat", Lengths(512, 256))
    batch = rows.evaluation_batch([2, 0])
    for place, row in enumerate((2, 0)):
        target = batch.tokens.input_ids[place][batch.tokens.target_mask[place]]
        assert tokenizer.decode(target) == f"{talks[row].responses[0]}<|im_end|>"
        prompt = batch.prompts.input_ids[place][batch.prompts.attention_mask[place]]
        assert tokenizer.decode(prompt) == rows.prompt_text(row)
    assert batch.tokens.normalizer == batch.tokens.target_mask.sum()
    assert batch.references == (talks[2].responses, talks[0].responses)
    references = given_responses(rows.prompt_batch([2, 0]), rows.response_batch([2, 0], 1.0))
    assert torch.equal(
        references.response_ids[references.response_mask], batch.tokens.input_ids[batch.tokens.target_mask]
    )


def test_long_conversations_lose_their_oldest_turns_or_are_dropped(talks, make_chat_tokenizer, tmp_path):
    tokenizer = make_chat_tokenizer()
    long = InstructionRecord(
        "", "", ("x",), conversation=Conversation((Turn("user", "x" * 99), Turn("assistant", "x")))
    )
    with pytest.warns(
        UserWarning, match="train: 5 of 7 prompts have more than max_prompt_length=70 tokens and are dropp"
    ):
        rows = encode_records("train", [*talks, long], tokenizer, None, Lengths(128, 70))
    assert [record.conversation for record in rows.records] == [talks[0].conversation, talks[3].conversation]
    limits = Lengths(128, 70, shorten_conversations=True, cache_dir=tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match="train: 4 prompts have more than .* and have lost their oldest turns"):
            rows = encode_records("train", [*talks, long], tokenizer, None, limits)
        assert (len(rows), rows.num_dropped, rows.num_shortened) == (6, 1, 4)
        assert [record.conversation.turns for record in rows.records] == [t.conversation.turns[-2:] for t in talks]
        assert [record.instruction for record in rows.records] == [t.conversation.turns[-2].content for t in talks]
        assert int(rows.prompt_lengths.max()) <= 70
