"""Which tokens of a conversation are targets."""

import pytest

from lightning_minillm.data import ChatTemplate
from lightning_minillm.data.chat import ChatEncoder
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.tokens import end_of_turn_id

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Templates in the formats of models that people use, with and without marks.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
EOS_ENDS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_END = EOS_ENDS.replace("{{ eos_token }}", "")
# Reasoning is shown in the last turn only, as Qwen3 does.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = Conversation(
    (
        Turn("system", "Be brief."),
        Turn("user", "The fox?"),
        Turn("assistant", "It has colour."),
        Turn("user", "And the dog?\n"),
        Turn("assistant", "The end."),
    )
)


def encode(tokenizer, talk=TALK, targets="all"):
    encoder = ChatEncoder(ChatTemplate(tokenizer), tokenizer, targets)
    (row,) = encoder.encode([(1, talk)])
    return row


def shown(tokenizer, row):
    """The text of each span of targets."""
    ids = row.prompt + row.response
    return [tokenizer.decode(ids[start:stop]) for start, stop in row.spans]


@pytest.mark.parametrize("template", [UNMARKED, CHATML, GEMMA, PHI])
def test_targets_are_what_the_assistant_wrote_and_its_end_of_turn(make_chat_tokenizer, template):
    tokenizer = make_chat_tokenizer(template)
    row = encode(tokenizer)
    assert shown(tokenizer, row) == ["It has colour.<|im_end|>", "The end.<|im_end|>"]
    assert tokenizer.decode(row.response) == "The end.<|im_end|>"  # and no second terminator
    prompt = ChatTemplate(tokenizer).render(TALK.turns[:-1], add_generation_prompt=True)
    assert tokenizer.decode(row.prompt) == prompt


def test_a_template_that_ends_turns_with_eos(make_chat_tokenizer):
    tokenizer = make_chat_tokenizer(EOS_ENDS)
    end = tokenizer.eos_token
    assert shown(tokenizer, encode(tokenizer)) == [f"It has colour.{end}", f"The end.{end}"]


def test_a_template_without_an_end_of_turn_gets_eos_at_the_end(make_chat_tokenizer):
    tokenizer = make_chat_tokenizer(NO_END)
    assert end_of_turn_id(tokenizer) is None
    assert shown(tokenizer, encode(tokenizer)) == ["It has colour.", f"The end.{tokenizer.eos_token}"]


@pytest.mark.parametrize("template", [UNMARKED, CHATML, GEMMA, PHI, EOS_ENDS, NO_END])
@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_last_targets_are_a_subset_of_all(make_chat_tokenizer, template, length):
    tokenizer = make_chat_tokenizer(template)
    turns = [turn for turn in (*TALK.turns, *TALK.turns[1:]) if turn.role != "system"][: length // 2 * 2]
    every, last = (encode(tokenizer, Conversation(tuple(turns)), targets) for targets in ("all", "last"))
    assert (every.prompt, every.response) == (last.prompt, last.response)
    assert last.spans == every.spans[-1:]
    assert last.spans[0] == (len(last.prompt), len(last.prompt) + len(last.response))
    assert len(every.spans) == length // 2


@pytest.mark.parametrize("targets", ["all", "last"])
@pytest.mark.parametrize(
    "talk",
    [
        TALK,
        Conversation(TALK.turns[1:3]),
        Conversation((*TALK.turns[:2], Turn("assistant", "\nThe fox\n"), *TALK.turns[3:])),
        Conversation((*TALK.turns[:2], Turn("assistant", "a"), Turn("assistant", "<|im_start|>"), *TALK.turns[3:])),
        Conversation((TALK.turns[1], Turn("assistant", ""), *TALK.turns[3:])),
        Conversation((TALK.turns[1], Turn("assistant", "\n"))),
    ],
)
def test_marks_and_prefixes_agree(make_chat_tokenizer, talk, targets):
    marked, plain = (encode(make_chat_tokenizer(template), talk, targets) for template in (CHATML, UNMARKED))
    assert marked == plain


def test_a_mark_without_the_end_of_turn_is_extended_by_it(make_chat_tokenizer):
    short = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert short != CHATML
    assert encode(make_chat_tokenizer(short)) == encode(make_chat_tokenizer(CHATML))


@pytest.mark.parametrize("targets", ["all", "last"])
def test_a_mark_around_a_whole_turn_is_cut_to_what_the_assistant_writes(make_chat_tokenizer, targets):
    whole = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}"
        "<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    unmarked = whole.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    again = Conversation((*TALK.turns[:3], Turn("assistant", "And more."), *TALK.turns[3:]))
    greeting = Conversation((Turn("assistant", "Hello."), *TALK.turns[1:]))
    for talk in (TALK, again, greeting):
        marked, plain = (encode(make_chat_tokenizer(template), talk, targets) for template in (whole, unmarked))
        assert marked == plain


def test_a_turn_with_another_end_does_not_reach_into_the_next(make_chat_tokenizer):
    ends = UNMARKED.replace("<|im_end|>", "{% if m.tool_calls %}<eos>{% else %}<|im_end|>{% endif %}")
    call = Turn("assistant", "\nLook.", {"tool_calls": [{"name": "look"}]})  # the break merges with that of the role
    talk = Conversation((TALK.turns[1], call, Turn("tool", "A fox."), TALK.turns[-1]))
    tokenizer = make_chat_tokenizer(ends)
    assert shown(tokenizer, encode(tokenizer, talk)) == ["\nLook.<eos>", "The end.<|im_end|>"]


def test_a_template_without_an_end_of_turn_may_begin_responses_with_a_line_break(make_chat_tokenizer):
    tokenizer = make_chat_tokenizer(
        NO_END.replace("]{{ m.content", "]\n{{ m.content").replace("[assistant]", "[assistant]\n")
    )
    talk = Conversation((TALK.turns[1], Turn("assistant", "\nYes."), *TALK.turns[3:]))
    assert shown(tokenizer, encode(tokenizer, talk)) == ["\nYes.", "The end.<eos>"]


def test_reasoning_that_is_dropped_later_needs_targets_last_or_marks(make_chat_tokenizer):
    tokenizer = make_chat_tokenizer(THINKING)
    with pytest.raises(ValueError, match=r"record 1: the chat template writes a turn differently .*targets=last"):
        encode(tokenizer)
    assert shown(tokenizer, encode(tokenizer, targets="last")) == ["<think></think>The end.<|im_end|>"]
    turn = "{{ m.content }}<|im_end|>"
    mark = (
        f"{{% if m.role == 'assistant' %}}{{% generation %}}{turn}{{% endgeneration %}}{{% else %}}{turn}{{% endif %}}"
    )
    marked = THINKING.replace(turn, mark)
    assert shown(tokenizer, encode(make_chat_tokenizer(marked))) == ["It has colour.<|im_end|>", "The end.<|im_end|>"]


def test_a_mark_that_is_missing_is_an_error(make_chat_tokenizer):
    nothing = CHATML.replace("m.role == 'assistant'", "m.role == 'nobody'")
    with pytest.raises(ValueError, match="record 1: the chat template marks nothing of the last assistant turn"):
        encode(make_chat_tokenizer(nothing))


def test_a_response_that_begins_with_a_line_break_leaves_the_prompt_whole(make_chat_tokenizer):
    tokenizer = make_chat_tokenizer()
    assert len(tokenizer("\n\n").input_ids) == 1  # it would merge with the break after the role
    row = encode(tokenizer, Conversation((Turn("user", "The fox?"), Turn("assistant", "\nThe end."))))
    assert tokenizer.decode(row.prompt).endswith("<|im_start|>assistant\n")
    assert shown(tokenizer, row) == ["\nThe end.<|im_end|>"]


def test_a_template_that_refuses_a_conversation_names_it(make_chat_tokenizer):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + UNMARKED
    tokenizer = make_chat_tokenizer(strict)
    encoder = ChatEncoder(ChatTemplate(tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"record 7: the chat template of .* refuses system, user: no system role"):
        list(encoder.encode([(3, Conversation(TALK.turns[1:3])), (7, TALK)]))
    with pytest.raises(ValueError, match="targets must be all or last, got 'first'"):
        ChatEncoder(ChatTemplate(tokenizer), tokenizer, "first")


def test_rows_are_cut_with_their_targets(make_chat_tokenizer):
    row = encode(make_chat_tokenizer())
    whole = len(row.prompt) + len(row.response)
    assert row.cut(whole) == row
    short = row.cut(whole - 1)
    assert (short.prompt, short.response) == (row.prompt, row.response[:-1])
    assert short.spans == (row.spans[0], (row.spans[1][0], whole - 1))


def test_a_row_keeps_a_target_where_all_marked_tokens_are_cut(make_chat_tokenizer):
    template = CHATML.replace("{% generation %}", "<think></think>{% generation %}")
    row = encode(make_chat_tokenizer(template), Conversation(TALK.turns[1:3]))
    size = len(row.prompt)
    assert row.spans[0][0] == size + len("<think></think>")
    for kept in range(1, len(row.response) + 1):
        short = row.cut(size + kept)
        assert len(short.response) == kept
        assert all(start < stop <= size + kept for start, stop in short.spans)
        assert short.spans
    assert row.cut(size + 3).spans == ((size, size + 3),)
