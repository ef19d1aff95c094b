"""A teacher that is shown a template of its own: the same responses after different prompts."""

import pytest
import torch

from lightning_minillm.data import (
    BatchOptions,
    ChatTemplate,
    Conversation,
    DistillationDataModule,
    EncodedInstructions,
    InstructionRecord,
    Lengths,
    PlainTemplate,
    Turn,
    encode_records,
)
from lightning_minillm.data.encoding import pad
from lightning_minillm.data.templates import bind_template
from lightning_minillm.data.token_rows import RowEncoder

RECORDS = [InstructionRecord("Name " + "a" * n, "x" * (n % 3), ("yes " * (n + 1),)) for n in (1, 7, 3, 12, 5)]


def teacher_of(tokenizer, template, add_bos="auto"):
    return RowEncoder(bind_template(template, tokenizer), tokenizer, "last", add_bos)


def encode(tokenizer, template=None, teacher=None, lengths=None, records=RECORDS, **options):
    teacher = None if teacher is None else teacher_of(tokenizer, teacher)
    template = template or PlainTemplate()
    return EncodedInstructions(records, tokenizer, template, lengths or Lengths(256, 128), teacher=teacher, **options)


def rows_of(batch, mask=None):
    mask = batch.attention_mask if mask is None else mask
    return [row[kept].tolist() for row, kept in zip(batch.input_ids, mask, strict=True)]


def talk(*contents):
    roles = ("user", "assistant") * len(contents)
    turns = Conversation(tuple(Turn(role, text) for role, text in zip(roles, contents, strict=False)))
    return InstructionRecord(turns.prompt_text(), "", (turns.response_text(),), conversation=turns)


@pytest.fixture
def chat(make_chat_tokenizer):
    return make_chat_tokenizer()


@pytest.mark.parametrize("method", ["token_batch", "response_batch"])
def test_responses_are_the_same_tokens_after_the_teachers_prompts(chat, method):
    rows = encode(chat, teacher="chat")
    alone, prompts = encode(chat), encode(chat, ChatTemplate())
    batch = getattr(rows, method)([3, 0, 2], 5.0)
    plain = getattr(alone, method)([3, 0, 2], 5.0)
    assert torch.equal(batch.input_ids, plain.input_ids)
    assert torch.equal(batch.target_mask, plain.target_mask)
    teacher = batch.teacher
    assert rows_of(teacher, teacher.target_mask) == rows_of(batch, batch.target_mask)
    before = [row[: -int(n)] for row, n in zip(rows_of(teacher), teacher.target_mask.sum(-1), strict=True)]
    assert before == rows_of(prompts.prompt_batch([3, 0, 2]))
    assert before == rows_of(rows.prompt_batch([3, 0, 2]).teacher)
    assert (teacher.normalizer, teacher.indices.tolist()) == (5.0, [3, 0, 2])
    assert not teacher.target_mask[:, 0].any()
    evaluated = rows.evaluation_batch([3, 0, 2])
    assert torch.equal(evaluated.tokens.teacher.input_ids, teacher.input_ids)
    assert torch.equal(evaluated.prompts.teacher.input_ids, rows.prompt_batch([3, 0, 2]).teacher.input_ids)


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_the_students_template_gives_the_students_rows(chat, template):
    rows = encode(chat, template, template, Lengths(600, 400))
    batch, prompts = rows.token_batch(range(5), 1.0), rows.prompt_batch(range(5))
    for given, expected in ((batch.teacher, batch), (prompts.teacher, prompts)):
        assert torch.equal(given.input_ids, expected.input_ids)
        assert torch.equal(given.attention_mask, expected.attention_mask)
    assert torch.equal(batch.teacher.target_mask, batch.target_mask)


def test_without_a_template_of_its_own_nothing_is_added(chat):
    rows = encode(chat)
    assert rows.token_batch([0], 1.0).teacher is None
    assert rows.prompt_batch([0]).teacher is None
    assert torch.equal(rows.longest, rows.lengths)


def test_limits_hold_for_both_and_dropped_records_are_counted(chat):
    both = encode(chat, teacher="chat")
    limit = int(both.teacher_lengths.sort().values[2])
    assert int(both.prompt_lengths.max()) < limit
    rows = encode(chat, teacher="chat", lengths=Lengths(limit + 6, limit))
    assert (len(rows), rows.num_dropped, rows.num_dropped_by_teacher) == (3, 2, 2)
    assert rows.longest.max() == limit + 6  # the longest is cut
    batch = rows.token_batch(range(3), 1.0)
    assert batch.teacher.attention_mask.sum(-1).max() == limit + 6
    assert torch.equal(batch.target_mask.sum(-1), batch.teacher.target_mask.sum(-1))
    teacher = teacher_of(chat, "chat")
    with pytest.warns(UserWarning, match="2 of 5 prompts have .* dropped, 2 of them only as the teacher's template"):
        encode_records("train", RECORDS, chat, PlainTemplate(), Lengths(limit + 6, limit), teacher=teacher)
    shortest = int(both.teacher_lengths.min())
    with pytest.raises(ValueError, match=rf"each of the 5 prompts .*the shortest has {shortest}\)"):
        encode(chat, teacher="chat", lengths=Lengths(256, shortest - 1))


def test_a_conversation_loses_turns_until_both_prompts_fit(chat):
    records = [talk("Hi there", "Hello", "And now?", "Yes"), talk("Hi", "Hello")]
    lengths = Lengths(120, 60, shorten_conversations=True)
    rows = encode(chat, ChatTemplate(), ChatTemplate(system="Be brief."), lengths, records, targets="last")
    assert rows.num_shortened == 1
    prompts = rows.prompt_batch([0])
    assert "Hi there" not in chat.decode(prompts.input_ids[0])
    assert "Be brief." in chat.decode(prompts.teacher.input_ids[0])
    assert "Hi there" not in chat.decode(prompts.teacher.input_ids[0])


def test_earlier_turns_cannot_be_targets(chat):
    records = [talk("Hi"), talk("Hi", "Hello", "And now?", "Yes")][1:]
    with pytest.raises(ValueError, match=r"record 1: .*set data\.datamodule\.targets=last, or teacher\.template=null"):
        encode(chat, "chat", "chat", records=records)
    rows = encode(chat, "chat", "chat", records=records, targets="last")
    batch = rows.token_batch([0], 1.0)
    assert torch.equal(batch.teacher.input_ids, batch.input_ids)
    assert torch.equal(batch.teacher.target_mask, batch.target_mask)


def test_the_cache_knows_the_teachers_template_and_tokenizer(chat, make_chat_tokenizer, tmp_path):
    lengths = Lengths(256, 128, cache_dir=tmp_path)
    assert not encode(chat, lengths=lengths).from_cache
    for template in (ChatTemplate(), ChatTemplate(system="Be brief."), PlainTemplate()):
        first = encode(chat, teacher=template, lengths=lengths)
        again = encode(chat, teacher=template, lengths=lengths)
        assert (first.from_cache, again.from_cache) == (False, True)
        assert torch.equal(first.prompt_batch([1]).teacher.input_ids, again.prompt_batch([1]).teacher.input_ids)
    other = make_chat_tokenizer()
    other.add_tokens(["Name"])
    teacher = teacher_of(other, ChatTemplate())
    rows = EncodedInstructions(RECORDS, chat, PlainTemplate(), lengths, teacher=teacher)
    assert not rows.from_cache
    assert other.convert_tokens_to_ids("Name") in rows.prompt_batch([0]).teacher.input_ids  # its own tokenizer's


def test_responses_that_end_differently_than_the_teachers_turns_are_counted(chat):
    arguments = ("train", RECORDS, chat, PlainTemplate(), Lengths(256, 128))
    with pytest.warns(UserWarning, match=r"5 of 5 responses do not end with '<\|im_end\|>'"):
        encode_records(*arguments, teacher=teacher_of(chat, "chat"))


def test_the_data_module_shows_the_teacher_its_template(chat):
    data = DistillationDataModule(
        RECORDS,
        RECORDS[:2],
        tokenizer=chat,
        template="plain",
        lm_corpus="pairs",
        lengths=Lengths(256, 128),
        batches=BatchOptions(batch_size=2),
    )
    data.use_teacher_template("chat")
    data.prepare_data()
    assert next(iter(data.pair_loader())).teacher is not None
    assert data.lm_stream.batch(0).teacher is not None
    assert next(iter(data.val_dataloader())).prompts.teacher is not None
    rows = data.train_set
    assert data.longest_rows()["train"] == (int(rows.teacher_lengths.max()), int(rows.longest.max()))
    assert rows.teacher_lengths.max() > rows.prompt_lengths.max()
    with pytest.raises(ValueError, match="call use_teacher_template before"):
        data.use_teacher_template("chat")


def test_padding_does_not_matter(chat):
    """A row has the same tokens alone and beside longer ones."""
    rows = encode(chat, teacher="chat")
    together = rows.token_batch([0, 3], 1.0).teacher
    alone = rows.token_batch([0], 1.0).teacher
    assert rows_of(together)[0] == rows_of(alone)[0]
    ids, mask = pad([torch.tensor(row).numpy() for row in rows_of(together)], rows.pad_token_id, left=False)
    assert torch.equal(ids, together.input_ids)
    assert torch.equal(mask, together.attention_mask)
