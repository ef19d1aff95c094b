import pytest

from lightning_minillm.data import PlainTemplate, build_tokenizer, generate_corpus, generate_records
from lightning_minillm.data.synthetic.tokenizer import EOS_TOKEN, tokenizer_texts


@pytest.fixture(scope="module")
def train():
    return generate_records("train", 3000)


def test_lengths_under_the_trained_tokenizer(train):
    tokenizer = build_tokenizer(tokenizer_texts(train, generate_corpus(500)))
    template = PlainTemplate()
    prompts = [len(tokenizer(template.format(r.instruction, r.input)).input_ids) for r in train]
    responses = [len(tokenizer(r.responses[0]).input_ids) + 1 for r in train]
    totals = [a + b for a, b in zip(prompts, responses, strict=True)]
    assert max(totals) <= 96
    assert 30 <= sum(totals) / len(totals) <= 50
    assert max(prompts) <= 40
    assert min(responses) >= 5


def test_tokenizer_is_byte_level_with_pad_as_eos(train):
    tokenizer = build_tokenizer(tokenizer_texts(train[:100]), vocab_size=300)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token == EOS_TOKEN
    assert len(tokenizer) == 300
    for text in ("Grüße, 你好!", " two  spaces ", "line\nline"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    with pytest.raises(ValueError, match="at least 257"):
        build_tokenizer(["x"], vocab_size=100)
