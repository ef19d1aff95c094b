"""The begin token: what the tokenizer would put before a text, exactly once."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_minillm.data import (
    AlpacaTemplate,
    ChatTemplate,
    DistillationDataModule,
    EncodedInstructions,
    InstructionRecord,
    Lengths,
    PackedCorpus,
    PlainTemplate,
    load_instructions,
)

RECORDS = [InstructionRecord("w5 w6", "", ("w7 w8",)), InstructionRecord("w9", "w10", ("w11",))]
CHAT = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}"
TURNS = "{% for m in messages %}<|im_start|> {{ m.content }} <|im_end|> {% endfor %}"
TOKENIZERS = {
    "none": {},
    "unused": {"bos_token": "w4"},
    "begins": {"begin": "w4", "bos_token": "w4"},
    "ends_too": {"begin": "<eos>", "bos_token": "<eos>"},  # as OPT, whose begin token is its end
}
REAL = ["tokenizers/gpt2", "tokenizers/tinyllama", "tokenizers/qwen1.5", "models/stories260K"]


def encode(tokenizer, template=None, add_bos="auto", records=RECORDS):
    return EncodedInstructions(records, tokenizer, template or PlainTemplate("w3"), Lengths(400, 300), add_bos=add_bos)


def rows_of(encoded):
    """Prompts, and pairs with their targets, as lists of ids."""
    prompts, pairs = encoded.prompt_batch(range(len(encoded))), encoded.token_batch(range(len(encoded)), 1.0)
    return (
        [ids[mask].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)],
        [ids[mask].tolist() for ids, mask in zip(pairs.input_ids, pairs.attention_mask, strict=True)],
        [ids[mask].tolist() for ids, mask in zip(pairs.input_ids, pairs.target_mask, strict=True)],
    )


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("template", [PlainTemplate("w3"), AlpacaTemplate(), "raw"])
def test_prompts_begin_once_with_what_the_tokenizer_puts_before_texts(make_special_tokenizer, kind, template):
    tokenizer = make_special_tokenizer(**TOKENIZERS[kind])
    begin = tokenizer("w5").input_ids[:-1]
    plain, given = (rows_of(encode(tokenizer, template, add_bos)) for add_bos in (False, "auto"))
    assert given[0] == [begin + prompt for prompt in plain[0]]
    assert given[1] == [begin + pair for pair in plain[1]]
    assert given[2] == plain[2]  # a begin token is never a target


def test_true_adds_a_begin_token_that_the_tokenizer_does_not_use(make_special_tokenizer):
    prompts, pairs, _ = rows_of(encode(make_special_tokenizer(bos_token="w4"), add_bos=True))
    assert {row[0] for row in prompts + pairs} == {4}


@pytest.mark.parametrize("chat", [CHAT, TURNS])
def test_a_chat_format_that_begins_with_it_gets_no_second_one(make_special_tokenizer, chat):
    tokenizer = make_special_tokenizer(begin="w4", bos_token="w4", chat=chat)
    for rows in rows_of(encode(tokenizer, ChatTemplate()))[:2]:
        assert all(row[0] == 4 and row[1] != 4 for row in rows)


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_read_prompts_as_they_would_themselves(data_folder, name):
    tokenizer = AutoTokenizer.from_pretrained(data_folder / name)
    records = [InstructionRecord("Name three rivers.", "In Asia", ("Ganges",))]
    encoded = encode(tokenizer, AlpacaTemplate(), records=records)
    assert rows_of(encoded)[0] == [tokenizer(encoded.prompt_text(0)).input_ids]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_every_document_begins_once(make_special_tokenizer, kind):
    tokenizer = make_special_tokenizer(**TOKENIZERS[kind])
    documents = ["w5 w6", "w7", "w4 w8 w9"]
    begin = tokenizer("w5").input_ids[:-1]
    expected = [begin, [5, 6, 0], begin, [7, 0], [] if begin == [4] else begin, [4, 8, 9, 0]]
    tokens = PackedCorpus(documents, tokenizer, max_length=2).token_batch(range(4), 1.0).input_ids.flatten()
    assert tokens.tolist() == [token for part in expected for token in part][:8]
    tokens = PackedCorpus(documents, tokenizer, max_length=2, add_bos=False).token_batch(range(4), 1.0).input_ids
    assert tokens.flatten().tolist() == [5, 6, 0, 7, 0, 4, 8, 9]


def test_the_cache_tells_begins_apart(make_special_tokenizer, tmp_path):
    tokenizer = make_special_tokenizer(**TOKENIZERS["begins"])
    lengths = Lengths(400, 300, cache_dir=tmp_path)
    for add_bos in ("auto", False, "auto"):
        encoded = EncodedInstructions(RECORDS, tokenizer, PlainTemplate("w3"), lengths, add_bos=add_bos)
        assert (rows_of(encoded)[0][0][0] == 4) == bool(add_bos)
        corpus = PackedCorpus(["w5 w6 w7"], tokenizer, max_length=2, cache_dir=tmp_path, add_bos=add_bos)
        assert (int(corpus.token_batch([0], 1.0).input_ids[0, 0]) == 4) == bool(add_bos)
    assert encoded.from_cache
    assert corpus.from_cache


def test_the_data_module_hands_it_on(make_special_tokenizer):
    tokenizer = make_special_tokenizer(**TOKENIZERS["begins"])
    for add_bos, first in (("auto", 4), (False, 5)):
        data = DistillationDataModule(
            RECORDS[:1], tokenizer=tokenizer, template=PlainTemplate("w3"), lm_corpus=["w5 w6 w7"] * 9, add_bos=add_bos,
            lengths=Lengths(32, 16, lm_max_length=4),
        )  # fmt: skip
        assert rows_of(data.train_set)[0][0][0] == first
        assert int(data.lm_corpus.token_batch([0], 1.0).input_ids[0, 0]) == first
    with pytest.raises(ValueError, match="add_bos must be auto, true or false"):
        DistillationDataModule(tokenizer=tokenizer, add_bos="yes")


# --- ids of generated responses -----------------------------------------------------------------------------------


def write_generated(file, ids, output="w7 <a>"):
    row = {"instruction": "w5", "output": output, "sample": 0, "tokens": len(ids), "finished": True, "output_ids": ids}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return load_instructions(file)


def test_ids_of_a_generated_response_are_what_training_sees(make_special_tokenizer, tmp_path):
    """Also where its text has other ids, and where it ended with an end of its own."""
    tokenizer = make_special_tokenizer(added=["<a>"])
    for ids in ([7, 30, 2], [7, 30, 0], [7, 30]):
        encoded = encode(tokenizer, records=write_generated(tmp_path / "a.jsonl", ids))
        assert rows_of(encoded)[2] == [ids]
        assert encoded.target_counts.tolist() == [len(ids)]
        assert np.diff(torch.tensor([encoded.prompt_lengths[0], encoded.lengths[0]])).tolist() == [len(ids)]


@pytest.mark.parametrize("chat", [None, TURNS])
def test_ids_of_another_tokenizer_are_refused(make_special_tokenizer, tmp_path, chat):
    tokenizer = make_special_tokenizer(added=["<a>"], chat=chat)
    records = write_generated(tmp_path / "a.jsonl", [8, 30, 0])
    with pytest.raises(ValueError, match=r"'output_ids' do not give the response's text"):
        encode(tokenizer, ChatTemplate() if chat else None, records=records)


@pytest.mark.parametrize("ids", [[], "7", [7.5], [True], [-1], {"a": 1}])
def test_ids_that_are_none_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match=r"line 1: the field 'output_ids' must be a list of token ids"):
        write_generated(tmp_path / "a.jsonl", ids)
