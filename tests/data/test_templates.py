import gzip
import json

import pytest

from lightning_minillm.data import (
    AlpacaTemplate,
    AutoTemplate,
    ChatTemplate,
    Conversation,
    InstructionRecord,
    Lengths,
    PlainTemplate,
    PromptTemplate,
    RawTemplate,
    Turn,
    as_template,
    encode_records,
)
from lightning_minillm.data.templates import bind_template, prompt_text


@pytest.mark.parametrize(
    "file",
    [
        "dolly/train.jsonl.gz",
        "dolly/dev.jsonl",
        "dolly/valid.jsonl",
        "self_instruct/minillm_valid.jsonl",
        "sni/minillm_sinst_11_valid.jsonl",
    ],
)
def test_alpaca_equals_the_official_prompts(real_data, file):
    opener = gzip.open if file.endswith(".gz") else open
    template = AlpacaTemplate()
    with opener(real_data / file, "rt", encoding="utf-8") as handle:
        for row in map(json.loads, handle):
            assert template.format(row["instruction"], row["input"]) == row["prompt"]


def test_alpaca_keeps_braces():
    text = AlpacaTemplate().format("Fill {instruction} and {x}.", "{input}")
    assert "Fill {instruction} and {x}." in text
    assert "### Input:\n{input}\n" in text


def test_plain():
    assert PlainTemplate().format("Do it.", "") == "Do it.\n>\n"
    assert PlainTemplate(cue="=\n").format("Do it.", "now") == "Do it.\nnow\n=\n"


def test_chat_uses_the_tokenizers_format(tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        ChatTemplate(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
    )
    try:
        assert ChatTemplate(tokenizer).format("Do it.", "now") == "[user]Do it.\n\nnow[me]"
        assert ChatTemplate(tokenizer, system="Be kind.").format("Do it.", "") == "[system]Be kind.[user]Do it.[me]"
    finally:
        tokenizer.chat_template = None


def test_chat_with_a_real_tokenizer(real_data):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "qwen1.5")
    if not real.chat_template:
        pytest.skip("this tokenizer folder has no chat template")
    text = ChatTemplate(real).format("Say hello.", "")
    assert "Say hello." in text
    assert text.rstrip().endswith("assistant")


def test_all_are_prompt_templates(tokenizer):
    assert isinstance(AlpacaTemplate(), PromptTemplate)
    assert isinstance(PlainTemplate(), PromptTemplate)


def test_raw_is_the_text_as_it_is():
    assert RawTemplate().format("Do it.", "") == "Do it."
    assert RawTemplate().format("Do it.", "now") == "Do it.\nnow"


def test_templates_by_name():
    assert as_template("alpaca") == as_template("AlpacaTemplate") == AlpacaTemplate()
    assert isinstance(as_template(None), AutoTemplate)
    own = PlainTemplate(cue="=")
    assert as_template(own) is own
    with pytest.raises(ValueError, match="no template 'chatml': use one of alpaca, auto, chat, plain, raw"):
        as_template("chatml")
    with pytest.raises(ValueError, match="must have a method format"):
        as_template(7)


ASKS = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_chat_hands_its_options_on_and_fixes_the_date(make_chat_tokenizer):
    thinking = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    tokenizer = make_chat_tokenizer(ASKS + thinking)
    template = ChatTemplate(tokenizer, kwargs={"enable_thinking": False})
    assert template.format("Hi", "") == "01 Jan 2025[user]Hi<think></think>"
    assert template.depends_on_date
    assert ChatTemplate(tokenizer, date="2024-07-26").format("Hi", "") == "26 Jul 2024[user]Hi"
    named = make_chat_tokenizer("{{ date_string or strftime_now('%Y') }}")
    template = ChatTemplate(named, kwargs={"date_string": "today"})
    assert template.format("Hi", "") == "today"
    assert not template.depends_on_date
    with pytest.raises(ValueError, match="date must be a day such as 2025-01-31, got '1 May'"):
        ChatTemplate(date="1 May")


def test_the_date_is_said_once(make_chat_tokenizer, recwarn):
    tokenizer = make_chat_tokenizer(ASKS)
    records = [InstructionRecord("Hi", "", ("Hello!",))]
    for name in ("train", "validation"):
        encode_records(name, records, tokenizer, ChatTemplate(date="2024-07-26"), Lengths())
    said = {str(warning.message) for warning in recwarn}
    assert said == {
        "the chat template writes the date, which is 2024-07-26 in all prompts: choose a different one with"
        " data.datamodule.template.date"
    }


def test_chat_takes_the_tokenizer_of_the_data(make_chat_tokenizer, tokenizer):
    template = ChatTemplate()
    with pytest.raises(ValueError, match="no tokenizer yet"):
        template.format("Hi", "")
    bound = bind_template(template, make_chat_tokenizer())
    assert bound.format("Hi", "") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert bind_template(bound, tokenizer) is bound
    with pytest.raises(ValueError, match="has no chat template: use data/template=alpaca, plain or raw"):
        bind_template("chat", tokenizer)


def test_auto_takes_the_chat_format_for_conversations(make_chat_tokenizer, tokenizer):
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello!"))
    talk = InstructionRecord("Hi", "", ("Hello!",), conversation=Conversation(turns))
    plain = InstructionRecord("Hi", "", ("Hello!",))
    chat, none = (bind_template(None, one) for one in (make_chat_tokenizer(), tokenizer))
    alpaca = AlpacaTemplate().format("Hi", "")
    assert [prompt_text(chat, record) == alpaca for record in (talk, plain)] == [False, True]
    assert [prompt_text(none, record) == alpaca for record in (talk, plain)] == [True, True]


@pytest.mark.parametrize("name", ["auto", "alpaca", "raw"])
def test_several_turns_need_a_chat_format(tokenizer, name):
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", "And?"), Turn("assistant", "Bye."))
    record = InstructionRecord("Hi", "", ("Bye.",), conversation=Conversation(turns))
    with pytest.raises(ValueError, match=r"^train: record 2: a conversation of 4 turns .* cannot be written by"):
        encode_records("train", [InstructionRecord("Hi", "", ("x",)), record], tokenizer, name, Lengths())
