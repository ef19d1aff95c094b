"""Where texts begin and end, and which tokens two tokenizers share."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lightning_minillm.tokens import begin_ids, check_tokenizers, end_ids, end_of_turn_id, with_begin

CHAT = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> w9 {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
REAL = ["gpt2", "tinyllama", "qwen1.5"]


@pytest.fixture
def make(make_special_tokenizer):
    return make_special_tokenizer


@pytest.fixture
def real(data_folder):
    return lambda name: AutoTokenizer.from_pretrained(data_folder / "tokenizers" / name)


# --- begin ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "bos", "add_bos", "expected"),
    [
        (None, None, "auto", ()),
        (None, "w5", "auto", ()),  # has a begin token and does not use it, as GPT-2
        ("w5", "w5", "auto", (5,)),
        ("w5", "w5", True, (5,)),
        (None, "w5", True, (5,)),
        ("w5", "w5", False, ()),
    ],
)
def test_a_text_begins_as_the_tokenizer_or_the_option_says(make, begin, bos, add_bos, expected):
    assert begin_ids(make(begin=begin, **({"bos_token": bos} if bos else {})), add_bos) == expected


@pytest.mark.parametrize("add_bos", ["yes", None, 2])
def test_other_values_of_add_bos_are_refused(make, add_bos):
    with pytest.raises(ValueError, match="add_bos must be auto, true or false"):
        begin_ids(make(), add_bos)


def test_a_begin_token_that_does_not_exist_is_refused(make):
    with pytest.raises(ValueError, match=r"no begin token: set add_bos=auto"):
        begin_ids(make(), True)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("text", ["w", "A sentence of several words.", " leading space", "\n\n", "你好"])
def test_real_tokenizers_get_their_begin_exactly_once(real, name, text):
    tokenizer = real(name)
    begin = begin_ids(tokenizer)
    once = with_begin(begin, tokenizer(text, add_special_tokens=False).input_ids)
    assert once == tokenizer(text).input_ids
    assert with_begin(begin, once) == once


def test_the_begin_of_real_tokenizers(real):
    assert [begin_ids(real(name)) for name in REAL] == [(), (1,), ()]


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configured", [None, 0, 7, [7], [0, 7], [7, 9]])
@pytest.mark.parametrize("named", [(), (7,), ("w8",), ("<|im_end|>", 7)])
def test_ends_are_the_union_of_all_that_name_some(make, make_model, configured, named):
    tokenizer, model = make(), make_model("gpt2")
    model.generation_config.eos_token_id = configured
    ids = {"w8": 8, "<|im_end|>": 2}
    listed = configured if isinstance(configured, list) else [configured] if configured is not None else []
    found = end_ids(tokenizer, [model], named)
    assert set(found) == {0, *listed, *(ids.get(name, name) for name in named)}
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["no such token", -1])
def test_a_named_end_has_to_exist(make, name):
    with pytest.raises(ValueError, match="eos_token_ids names"):
        end_ids(make(), named=[name])


def test_a_chat_format_ends_a_turn_with_its_own_token(make, real):
    assert end_of_turn_id(make(chat=CHAT)) == 2
    assert end_ids(make(chat=CHAT)) == (0, 2)
    assert end_of_turn_id(make()) is None
    qwen = real("qwen1.5")
    assert qwen.convert_ids_to_tokens(end_of_turn_id(qwen)) == "<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|> {{ m.content }} {% endfor %}",  # ends with nothing
        "{{ raise_exception('no assistant here') }}",
        "{{ messages[0]['no such field'].text }}",
    ],
)
def test_a_chat_format_without_an_end_has_none(make, template):
    assert end_of_turn_id(make(chat=template)) is None


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_equal_tokenizers_do_not_differ(make):
    found = check_tokenizers(make(), make())
    assert found.ids == []
    assert str(found) == ""


def test_another_eos_and_more_added_tokens_are_named(make):
    found = check_tokenizers(make(added=["<a>"]), make(eos="<|im_end|>", added=["<a>", "<think>", "</think>"]))
    assert found.student_only == {}
    assert found.teacher_only == {"<think>": 31, "</think>": 32}
    assert found.ids == [31, 32]
    assert str(found) == (
        "only the teacher has 2 tokens ('<think>', '</think>'), which are left out of both distributions; the student's"
        " text ends with '<eos>' and the teacher's with '<|im_end|>': either ends"
    )
    assert check_tokenizers(make(added=["<b>"]), make()).student_only == {"<b>": 30}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({}, {"words": 33}),  # three words of the vocabulary itself more
        ({"words": 33}, {}),
        ({"added": ["<a>"]}, {"added": ["<b>"]}),  # one id, two tokens
        ({"added": ["<a>", "<b>"]}, {"added": ["<b>", "<a>"]}),  # one token, two ids
    ],
)
def test_what_cannot_be_compared_names_two_ways_out(make, student, teacher):
    with pytest.raises(ValueError, match=r"tokens differ, e\.g\. .*SeqKD.*with one tokenizer"):
        check_tokenizers(make(**student), make(**teacher))


def test_words_that_change_places_are_found(make):
    other = make()
    vocabulary = json.loads(other.backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    other._tokenizer = Tokenizer.from_str(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"2 tokens differ, e.g. 'w3', 'w4'"):
        check_tokenizers(make(), other)


@pytest.mark.parametrize("other", ["tinyllama", "qwen1.5"])
def test_real_tokenizers_of_two_families_are_refused(real, other):
    with pytest.raises(ValueError, match="different tokenizers"):
        check_tokenizers(real("gpt2"), real(other))
