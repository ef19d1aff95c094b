import gzip
import json

import pytest

from lightning_minillm.evaluation import ClassificationRecord, ClassificationSource, boolq_source, sst2_source

WORDS = {"0": "bad", "1": "good"}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def table(separator, *rows):
    return "".join(separator.join(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.tsv", table("\t", ("text", "label"), ("a dull film", "0"), ("lovely", "1"))),
        ("dev.csv", table(",", ("sentence", "label"), ("a dull film", "negative"), ("lovely", "positive"))),
        ("dev.jsonl", '{"idx": 0, "sentence": "a dull film", "label": 0}\n{"sentence": "lovely ", "label": 1}\n'),
        ("dev.json", '[{"text": "a dull film", "label": "0"}, {"text": "lovely", "label": "Positive"}]'),
    ],
)
def test_sst2_in_all_its_forms(name, content, tmp_path):
    source = sst2_source(write(tmp_path / name, content))
    assert source.label_words == ("negative", "positive")
    records = source.load()
    assert [(record.input, record.label) for record in records] == [("a dull film", 0), ("lovely", 1)]
    assert len({record.instruction for record in records}) == 1
    assert "negative or positive" in records[0].instruction


@pytest.mark.parametrize(
    ("column", "values"), [("answer", (True, False)), ("label", (1, 0)), ("answer", ("yes", "no"))]
)
def test_boolq_in_all_its_forms(column, values, tmp_path):
    rows = [{"question": "is it wet", "passage": "Water is wet.", column: value} for value in values]
    source = boolq_source(write(tmp_path / "dev.jsonl", "\n".join(map(json.dumps, rows))))
    assert source.label_words == ("no", "yes")
    records = source.load()
    assert [record.label for record in records] == [1, 0]
    assert records[0].input == "Passage: Water is wet.\nQuestion: is it wet?"


def test_any_named_columns_and_words(tmp_path):
    file = tmp_path / "topics.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8") as handle:
        handle.write("title,body,topic\n{braces},goal!,3\nrates,banks,7\nelection,votes,9\n")
    source = ClassificationSource(
        str(file),
        instruction="Name the topic of '{headline}'.",
        input="{body}",
        words={3: "sport", "7": "money", "9": "money"},
        label=["category", "topic"],
        columns={"headline": ["headline", "title"]},
    )
    assert source.label_words == ("sport", "money")
    assert source.load() == [
        ClassificationRecord("Name the topic of '{braces}'.", "goal!", 0),
        ClassificationRecord("Name the topic of 'rates'.", "banks", 1),
        ClassificationRecord("Name the topic of 'election'.", "votes", 1),
    ]


def test_a_limit_reads_the_first_rows_alone(tmp_path):
    file = write(tmp_path / "dev.tsv", table("\t", ("text", "label"), ("a", "0"), ("b", "1"), ("c", "?")))
    assert [record.input for record in sst2_source(file, limit=2).load()] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table("\t", ("text", "label"), ("a", "0"), ("b", "-1")), r"row 2: the label '-1' has no label word.*'0', '1'"),
        (table("\t", ("words", "label"), ("a", "0")), r"row 1: no column 'text' or 'sentence' .*'words', 'label'"),
        (table("\t", ("text", "class"), ("a", "0")), r"row 1: no column 'label'"),
        (table("\t", ("text", "label"), ("", "0")), r"row 1: the column 'text' is empty"),
        (table("\t", ("text", "label")), "has no examples"),
    ],
)
def test_bad_rows_are_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sst2_source(write(tmp_path / "dev.tsv", content)).load()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv"):
        sst2_source(str(tmp_path / "nowhere.tsv")).load()
    with pytest.raises(ValueError, match="has no path"):
        sst2_source(None).load()


@pytest.mark.parametrize(
    "options",
    [
        {"words": {"0": "same", "1": "same"}},
        {"words": {"0": "no", "1": " "}},
        {"words": {"0": False, "1": True}},
        {"words": WORDS, "limit": 0},
    ],
)
def test_options_out_of_range_are_refused_when_made(options):
    with pytest.raises(
        ValueError, match="limit" if "limit" in options else "at least two different, non-empty label words"
    ):
        ClassificationSource("x.tsv", instruction="Say it.", input="{text}", **options)


def test_the_real_sst2(data_folder):
    file = data_folder / "sst2" / "dev.tsv"
    if not file.is_file():
        pytest.skip(f"no SST-2 at '{file}'")
    records = sst2_source(str(file)).load()
    assert len(records) == 872
    assert sum(record.label for record in records) == 444
    assert records[0].input == "it 's a charming and often affecting journey ."
