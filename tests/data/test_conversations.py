import json

import pytest

from lightning_minillm.data import FieldMap, InstructionRecord, load_instructions
from lightning_minillm.data.conversations import Conversation, Turn, end_with_response, read_messages, read_tools

USER, ASSISTANT = Turn("user", "Hi"), Turn("assistant", "Hello!")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
        [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}, {"role": "assistant", "content": "Hello!"}],
        ({"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Hello!"}),
    ],
)
def test_messages_in_every_spelling(messages):
    assert read_messages(messages, "row 1") == (USER, ASSISTANT)


def test_a_turn_that_calls_tools_needs_no_text():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "1"}]
    turns = read_messages(messages, "row 1")
    assert turns == (Turn("assistant", "", {"tool_calls": calls}), Turn("tool", "1"))
    assert turns[0].message() == {"role": "assistant", "content": "", "tool_calls": calls}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "'messages' must be a list of messages with role and content, got str 'hi'"),
        ([], "must be a list of messages"),
        (["hi"], "'messages', message 1 must be an object with role and content, got str 'hi'"),
        ([{"role": "boss", "content": "x"}], "message 1: 'role' must be one of system, user, assistant, tool, got str"),
        ([{"role": "user", "content": 7}], "message 1: 'content' must be text or a list of text parts, got int 7"),
        ([{"role": "user", "content": float("nan")}], "got float nan"),
        ([{"role": "user"}], "'content' must be text or a list of text parts, got nothing"),
        ([{"role": "user", "content": None}], "got nothing"),
        ([{"role": "user", "content": []}], "got list"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "got dict {'type': 'image'"),
        ([{"from": "human", "value": {"text": "x"}}], "'value' must be text"),
    ],
)
def test_what_is_no_message_is_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        read_messages(messages, "row 3: 'messages'")


def test_tools_are_schemas_or_their_json():
    schema = {"type": "function", "function": {"name": "add"}}
    assert read_tools([schema], "x") == read_tools('[{"type": "function", "function": {"name": "add"}}]', "x")
    assert read_tools(None, "x") == read_tools("", "x") == read_tools([], "x") == ()
    for wrong in ("add", "{", {"name": "add"}, ["add"], 7):
        with pytest.raises(ValueError, match=r"row 2: 'tools'"):
            read_tools(wrong, "row 2: 'tools'")


def test_a_conversation_ends_with_its_last_response():
    assert end_with_response((USER, ASSISTANT, USER), (), "x").turns == (USER, ASSISTANT)
    for turns in ((USER,), (ASSISTANT,), (ASSISTANT, USER)):
        with pytest.raises(ValueError, match="row 1 has no assistant turn that answers another"):
            end_with_response(turns, (), "row 1")
    with pytest.raises(ValueError, match="row 1: the last assistant turn is empty"):
        end_with_response((USER, Turn("assistant", " \n")), (), "row 1")


def test_only_one_question_and_answer_is_single():
    assert Conversation((USER, ASSISTANT)).is_single
    assert not Conversation((Turn("system", "x"), USER, ASSISTANT)).is_single
    assert not Conversation((USER, ASSISTANT), ({"name": "add"},)).is_single
    long = Conversation((USER, ASSISTANT, USER, ASSISTANT))
    assert long.prompt_text() == "user: Hi\nassistant: Hello!\nuser: Hi"
    assert long.without_oldest() == Conversation((USER, ASSISTANT))


def load(tmp_path, *rows, **fields):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_instructions(file, fields=FieldMap(**fields))


def test_records_with_turns_are_recognised(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    rows = [
        {"messages": messages, "task": "greeting"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"prompt": messages[:1], "completion": messages[1:]},
        {"prompt": "Hi", "completion": messages[1:]},
        {"prompt": "Hi", "messages": messages},
    ]
    for record in load(tmp_path, *rows):
        assert record.conversation == Conversation((USER, ASSISTANT))
        assert (record.instruction, record.input, record.responses) == ("Hi", "", ("Hello!",))
    assert load(tmp_path, *rows)[0].task == "greeting"


def test_text_prompts_are_instructions(tmp_path):
    assert load(tmp_path, {"prompt": "Hi", "completion": "Hello!"}) == [InstructionRecord("Hi", "", ("Hello!",))]
    both = {"instruction": "Hi", "output": "Hello!", "prompt": "### Hi", "completion": "x", "messages": "x"}
    assert load(tmp_path, both) == [InstructionRecord("Hi", "", ("Hello!",))]


def test_fields_can_be_named(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    row = {"talk": talk, "kit": [{"name": "add"}]}
    assert load(tmp_path, row, messages="talk", tools="kit")[0].conversation.tools == ({"name": "add"},)
    with pytest.raises(ValueError, match="no field 'instruction'"):
        load(tmp_path, row)


def test_what_is_wrong_in_a_conversation_names_row_and_field(tmp_path):
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    for row, message in (
        ({"messages": "[{'role': 'user'}]"}, r"line 2: 'messages' must be a list of messages"),
        ({"messages": [{"role": "user", "content": 7}]}, r"line 2: 'messages', message 1: 'content' must be text"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "line 2: 'messages' has no assistant turn"),
        ({"prompt": "x", "completion": [{"role": "assistant"}]}, "line 2: 'completion', message 1"),
        ({**good, "tools": "add"}, "line 2: 'tools' is not valid JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, good, row)
