import gzip
import json

import pytest

from lightning_minillm.data import AlpacaTemplate, ChatTemplate, PlainTemplate, PromptTemplate


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
