import csv
import gzip
import json
import re

import datasets
import pytest

from lightning_minillm.data import (
    FieldMap,
    InstructionRecord,
    InstructionSource,
    Shares,
    SplitSource,
    load_instructions,
)

ROWS = [
    {"instruction": "Say hello.", "input": "", "output": "Hello.", "topic": "talk"},
    {"instruction": "Sort.", "input": "b, a", "output": ["a, b", "a and b"], "exact": True},
    {"instruction": "Löse: 1 + 1 = ?", "input": None, "output": "2"},
]
RECORDS = [
    InstructionRecord("Say hello.", "", ("Hello.",), "talk", False),
    InstructionRecord("Sort.", "b, a", ("a, b", "a and b"), "", True),
    InstructionRecord("Löse: 1 + 1 = ?", "", ("2",), "", False),
]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def test_jsonl_plain_and_gzipped(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES.replace("\n", "\n\n", 1), encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.write(LINES)
    assert load_instructions(tmp_path / "a.jsonl") == RECORDS
    assert load_instructions(tmp_path / "b.jsonl.gz") == RECORDS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz"])
def test_separators_other_than_a_newline_stay_in_the_text(tmp_path, ending):
    file, opener = tmp_path / f"a{ending}", gzip.open if ending.endswith(".gz") else open
    row = {"instruction": "a\u2028b", "output": "c\u2029d\x85e\x0cf"}
    with opener(file, "wt", encoding="utf-8", newline="\n") as handle:
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    assert load_instructions(file) == [InstructionRecord("a\u2028b", "", ("c\u2029d\x85e\x0cf",))]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"data": ROWS}, indent=1),
        LINES,
    ],
)
def test_json_list_object_or_lines(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert load_instructions(tmp_path / "a.json") == RECORDS


def test_csv_keeps_text_as_it_is(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerows([["instruction", "context", "response"], ["Say, 'NA'.", "", "NA"], ["Code?", "x\ny", "007"]])
    found = load_instructions(tmp_path / "a.csv")
    assert [(r.instruction, r.input, r.responses) for r in found] == [
        ("Say, 'NA'.", "", ("NA",)),
        ("Code?", "x\ny", ("007",)),
    ]


def test_tsv_and_gzipped_csv(tmp_path):
    (tmp_path / "a.tsv").write_text("instruction\toutput\nOne, two\tthree\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.csv.gz", "wt", encoding="utf-8") as handle:
        handle.write('instruction,output\n"One, two",three\n')
    expected = [InstructionRecord("One, two", "", ("three",))]
    assert load_instructions(tmp_path / "a.tsv") == expected
    assert load_instructions(tmp_path / "b.csv.gz") == expected


def test_parquet_saved_folder_and_hub_go_through_datasets(tmp_path, monkeypatch):
    data = datasets.Dataset.from_list([{"instruction": "Go.", "output": ["a", "b"], "category": "c"}] * 3)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    expected = [InstructionRecord("Go.", "", ("a", "b"), "c")] * 3
    assert load_instructions(tmp_path / "a.parquet") == expected
    assert load_instructions(tmp_path / "saved") == expected
    assert load_instructions(tmp_path / "splits", split="train") == expected
    with pytest.raises(FileNotFoundError, match="it has train"):
        load_instructions(tmp_path / "splits", split="test")

    assert load_instructions([tmp_path / "a.parquet", tmp_path / "saved"], limit=4) == [*expected, expected[0]]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or data)
    assert InstructionSource("someone/some-set", split="train", name="main", limit=2).load() == expected[:2]
    assert InstructionSource("someone/some-set", split="train", revision="v1").load() == expected
    assert asked == [
        (("someone/some-set", "main"), {"split": "train", "streaming": True}),
        (("someone/some-set", None), {"split": "train", "revision": "v1"}),
    ]


def test_hub_errors_are_explained(monkeypatch):
    def load_dataset(path, name, split, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="give the split"):
        load_instructions("someone/some-set")
    for limit in (None, 3):
        with pytest.raises(FileNotFoundError, match="could not be loaded from the hub: ConnectionError: no network"):
            load_instructions("someone/some-set", split="train", limit=limit)


def test_folder_with_and_without_split(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "test-00.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-8")
    (tmp_path / "test-01.jsonl").write_text(json.dumps(ROWS[1]), encoding="utf-8")
    (tmp_path / "notes.md").write_text("no data", encoding="utf-8")
    assert load_instructions(tmp_path, split="train") == RECORDS
    assert load_instructions(tmp_path, split="test") == RECORDS[:2]
    with pytest.raises(ValueError, match=r"files of several splits \(test-00.jsonl, .*\): give the split"):
        load_instructions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file for the split 'dev'; it contains test-00.jsonl"):
        load_instructions(tmp_path, split="dev")


def test_field_map_and_limit(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Why?", "facts": "f", "answers": ["So."], "task": "t"}\n' * 5)
    fields = FieldMap(instruction="question", input=["context", "facts"], response="answers", task=())
    found = InstructionSource(str(tmp_path / "a.jsonl"), fields=fields, limit=2).load()
    assert found == [InstructionRecord("Why?", "f", ("So.",))] * 2


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(LINES + '{"instruction": "x", \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 4 of '.*a\.jsonl' is not valid JSON"):
        load_instructions(file)
    file.write_text(LINES + "[1, 2]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl', line 4: expected a JSON object, got list"):
        load_instructions(file)
    json_file = tmp_path / "b.json"
    json_file.write_text('[\n{"instruction": "x"},\n{]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3 of '.*b\.json' is not valid JSON"):
        load_instructions(json_file)
    json_file.write_text('["x"]', encoding="utf-8")
    with pytest.raises(ValueError, match="record 1: expected a JSON object, got str"):
        load_instructions(json_file)
    json_file.write_text("3", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a list of objects"):
        load_instructions(json_file)


def test_a_broken_csv_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\nx,y\nx,y,z\n")
    with pytest.raises(ValueError, match=r"a\.csv' cannot be read as csv: .*line 3"):
        load_instructions(tmp_path / "a.csv")


def test_missing_fields_say_which_exist(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Why?", "answer": "So."}\n')
    with pytest.raises(
        ValueError, match=r"no field 'instruction' for the instruction; the row has 'question', 'answer'"
    ):
        load_instructions(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"no field 'output' or 'response' or 'responses' for the response"):
        load_instructions(tmp_path / "a.jsonl", fields=FieldMap(instruction="question"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x", "output": []}, "'output' contains no response"),
        ({"instruction": "x", "output": None}, "'output' contains no response"),
        ({"instruction": None, "output": "y"}, "'instruction' is null"),
        ({"instruction": "  ", "output": "y"}, "'instruction' is blank"),
        ({"instruction": float("nan"), "output": "y"}, "'instruction' is NaN"),
        ({"instruction": [{"role": "user", "content": "hi"}], "output": "y"}, "'instruction' holds a list, not text"),
        ({"instruction": "x", "input": {"a": 1}, "output": "y"}, "'input' holds an object, not text"),
        ({"instruction": "x", "output": " \n"}, "'output' contains no response, it is blank"),
        ({"instruction": "x", "output": ["y", ""]}, "'output' contains no response, it is blank"),
        ({"instruction": "x", "output": float("nan")}, "'output' contains no response, it is NaN"),
        ({"instruction": "x", "output": float("inf")}, "'output' holds float, not text"),
        ({"instruction": "x", "output": {"text": "y"}}, "'output' holds an object, not text"),
        ({"instruction": "x", "output": [["y"]]}, "'output' holds a list, not text"),
        ({"instruction": "x", "output": [{"role": "assistant", "content": "y"}]}, "'output' holds an object, not text"),
        ({"instruction": "x", "output": True}, "'output' holds a truth value, not text"),
        ({"instruction": "x", "output": "\ud800"}, "'output' has half of a surrogate pair at 0"),
        ({"instruction": "x", "output": "y", "category": ["a"]}, "'category' holds a list, not text"),
        ({"instruction": "x", "output": "y", "exact": "perhaps"}, "'exact' must be true or false, got 'perhaps'"),
    ],
)
def test_rows_without_content(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"instruction": "x", "output": "y"}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=rf"a\.jsonl', line 2: the field {message}"):
        load_instructions(tmp_path / "a.jsonl")


def test_a_model_may_have_written_nothing(tmp_path):
    row = {"instruction": "x", "output": "", "sample": 0, "tokens": 1, "finished": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_instructions(tmp_path / "a.jsonl") == [InstructionRecord("x", "", ("",))]


def test_numbers_become_text_and_nothing_becomes_no_input(tmp_path, caplog):
    rows = [
        {"instruction": "2 + 5?", "input": float("nan"), "output": 7},
        {"instruction": 8, "input": None, "output": [1.5, "x"], "exact": 1},
        {"instruction": "a", "input": " \n", "output": "b", "exact": "false"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        found = load_instructions(tmp_path / "a.jsonl")
    assert found == [
        InstructionRecord("2 + 5?", "", ("7",)),
        InstructionRecord("8", "", ("1.5", "x"), exact=True),
        InstructionRecord("a", "", ("b",)),
    ]
    assert "numbers are read as text (2 of 'output', 1 of 'instruction')" in caplog.text


def test_capitals_are_recognised_and_other_spellings_proposed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"Instruction": "a", "Input": "b", "OUTPUT": "c"}\n{"instruction": "a", "output": "c"}\n')
    assert load_instructions(file) == [InstructionRecord("a", "b", ("c",)), InstructionRecord("a", "", ("c",))]
    assert load_instructions(file, fields=FieldMap(instruction="INSTRUCTION"))[0].instruction == "a"
    for row, message in (
        ({"instructions": "a", "output": "c"}, "fields.instruction; did you mean instructions?"),
        ({"instruction": "a", "outputs": "c"}, "fields.response; did you mean outputs?"),
        ({"instruction": "a", "inputs": "b", "output": "c"}, "fields.input; did you mean inputs?"),
    ):
        file.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=re.escape(message)):
            load_instructions(file)
    assert load_instructions(file, fields=FieldMap(input=()))[0].input == ""
    with pytest.raises(ValueError, match=r"fields.task must be a field name or a list of names, got \(3,\)"):
        FieldMap(task=[3])


def test_places_that_do_not_fit(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="contains no records"):
        load_instructions(tmp_path / "empty.jsonl")
    (tmp_path / "empty.csv").write_text("instruction,output\n")
    with pytest.raises(ValueError, match="contains no records"):
        load_instructions(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match="unknown format"):
        load_instructions(tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="single file and has no split 'train'"):
        load_instructions(tmp_path / "empty.jsonl", split="train")
    for limit in (0, 20.5, 8.0, True, "ten"):
        with pytest.raises(ValueError, match="limit must be at least 1 and a whole number"):
            load_instructions(tmp_path / "empty.jsonl", limit=limit)
    for missing in ("nowhere.jsonl", str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(FileNotFoundError, match="there is no data file"):
            load_instructions(missing)
    with pytest.raises(FileNotFoundError, match="contains no data file"):
        load_instructions(tmp_path / "folder")


def test_real_files(real_data):
    train = load_instructions(real_data / "dolly" / "train.jsonl.gz")
    assert len(train) == 11435
    assert train[0].task
    raw = load_instructions(real_data / "dolly" / "databricks-dolly-15k.jsonl.gz", limit=50)
    assert any(record.input for record in raw)
    several = load_instructions(real_data / "sni" / "minillm_sinst_11_valid.jsonl")
    assert len(several) == 1694
    assert max(len(record.responses) for record in several) > 1


def test_a_source_without_a_path_says_what_to_name():
    with pytest.raises(ValueError, match="give a file, a folder or a data set on the hub"):
        InstructionSource(None)


# --- splits ---------------------------------------------------------------------------------------------------------


def lines(file, *numbers):
    file.write_text("".join(json.dumps({"instruction": f"i{n}", "output": f"o{n}"}) + "\n" for n in numbers))
    return str(file)


def instructions(split, **options):
    return [record.instruction for record in SplitSource(split, **options).load()]


def test_files_of_splits_are_found_by_their_usual_names(tmp_path):
    for name, number in (("train.jsonl", 1), ("dev.jsonl", 2), ("test-0.jsonl", 3), ("test-1.jsonl", 4), ("x.md", 5)):
        lines(tmp_path / name, number)
    path = str(tmp_path)
    assert instructions("train", path=path) == ["i1"]
    assert instructions("validation", path=path) == ["i2"]
    assert instructions("test", path=path) == ["i3", "i4"]
    assert instructions("test", path=path, limits={"test": 1}) == ["i3"]
    assert instructions("validation", path=path, places={"validation": str(tmp_path / "train.jsonl")}) == ["i1"]
    assert instructions("validation", path=path, splits={"validation": "train"}) == ["i1"]
    lines(tmp_path / "valid.jsonl", 6)
    with pytest.raises(ValueError, match="has valid and dev, each of which could be the validation split: name one"):
        instructions("validation", path=path)
    (tmp_path / "valid.jsonl").unlink()
    lines(tmp_path / "train.json", 1)
    with pytest.raises(ValueError, match=r"has train.json and train.jsonl: name the one to read"):
        instructions("train", path=path)


@pytest.mark.parametrize("place", ["a.jsonl", "."])
def test_one_file_is_split_by_shares_and_a_seed(tmp_path, place, caplog):
    lines(tmp_path / "a.jsonl", *range(40))
    path = str(tmp_path / place)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        parts = {split: instructions(split, path=path) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 36, "validation": 2, "test": 2}
    found = {name for part in parts.values() for name in part}
    assert found == {f"i{n}" for n in range(40)}
    assert parts["train"] == sorted(parts["train"], key=lambda name: int(name[1:]))
    assert "train: 36 of 40 training records; 2 for validation, 2 for test are taken from them" in caplog.text
    assert "validation: 2 of 40 training records" in caplog.text
    again = {split: instructions(split, path=path) for split in parts}
    assert again == parts
    others = [instructions("validation", path=path, shares=Shares(seed=seed)) for seed in range(1, 5)]
    assert any(other != parts["validation"] for other in others)
    limited = instructions("train", path=path, limits={"train": 5})
    assert limited == parts["train"][:5]


def test_only_splits_that_are_missing_are_taken_from_the_training_records(tmp_path):
    path = str(tmp_path)
    lines(tmp_path / "train.jsonl", *range(20))
    lines(tmp_path / "test.jsonl", 100)
    assert len(instructions("train", path=path)) == 19
    assert len(instructions("validation", path=path)) == 1
    assert instructions("test", path=path) == ["i100"]
    assert len(instructions("train", path=path, shares=Shares(validation=0))) == 20
    with pytest.raises(FileNotFoundError, match="has no validation split, and its share is 0"):
        instructions("validation", path=path, shares=Shares(validation=0))
    (tmp_path / "train.jsonl").unlink()
    lines(tmp_path / "train.jsonl", 1)
    with pytest.raises(ValueError, match="1 training records are too few to take a validation split from"):
        instructions("train", path=path)


def test_with_limits_no_more_is_read_than_they_ask_for(tmp_path):
    file = lines(tmp_path / "a.jsonl", *range(10))
    with open(file, "a") as broken:
        broken.write("nothing\n")
    limits = {"train": 5, "validation": 2, "test": 3}
    parts = {split: instructions(split, path=file, limits=limits) for split in limits}
    assert {split: len(part) for split, part in parts.items()} == limits
    assert {name for part in parts.values() for name in part} == {f"i{n}" for n in range(10)}


def test_splits_of_saved_and_hub_data_sets(tmp_path, monkeypatch):
    train = datasets.Dataset.from_list([{"instruction": f"i{n}", "output": "o"} for n in range(30)])
    datasets.DatasetDict({"train": train, "test": train.select([4])}).save_to_disk(tmp_path / "saved")
    assert instructions("test", path=str(tmp_path / "saved")) == ["i4"]
    assert len(instructions("validation", path=str(tmp_path / "saved"))) == 2
    train.save_to_disk(tmp_path / "one")
    assert len(instructions("train", path=str(tmp_path / "one"))) == 26
    asked = []

    def load_dataset(path, name, split, **options):
        asked.append((name, split, options))
        return train

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **options: ["train", "dev"])
    options = {"path": "x/y", "name": "main", "revision": "v1", "limits": {"validation": 3}}
    assert instructions("validation", **options) == ["i0", "i1", "i2"]
    assert len(instructions("train", **options)) == 28
    assert asked[0] == ("main", "dev", {"revision": "v1", "streaming": True})
    assert asked[1] == ("main", "train", {"revision": "v1"})
    with pytest.raises(FileNotFoundError, match="no data file"):
        instructions("train", path="./nowhere")


def test_sources_are_joined_or_weighted(tmp_path):
    a, b = lines(tmp_path / "a.jsonl", 1, 2, 3), lines(tmp_path / "b.jsonl", 4)
    (tmp_path / "c.jsonl").write_text('{"question": "i5", "answer": "o5"}\n')
    c = {"path": str(tmp_path / "c.jsonl"), "fields": {"instruction": "question", "response": "answer"}}
    sources = {"first": {"path": a, "limit": 2}, "second": {"path": [b]}, "third": c}
    whole = Shares(0, 0)
    source = SplitSource("train", sources=sources, shares=whole)
    assert [(r.source, r.instruction) for r in source.load()] == [
        ("first", "i1"), ("first", "i2"), ("second", "i4"), ("third", "i5")
    ]  # fmt: skip
    assert source.weights is None
    weighted = {"a": {"path": a, "weight": 2}, "b": {"path": b, "weight": 0.5}}
    assert SplitSource("train", sources=weighted).weights == {"a": 2, "b": 0.5}
    assert SplitSource("validation", sources=weighted).weights is None
    assert len(instructions("validation", sources=weighted)) == 1
    assert instructions("validation", path=a, places={"validation": b}, sources=weighted) == ["i4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no path to read records from"),
        ({"sources": {"a": "file"}}, "sources.a must be a mapping with a path .* got 'file'"),
        ({"sources": {"a": {"weight": 1}}}, "sources.a must be a mapping with a path"),
        ({"sources": {"a": {"path": "x", "wieght": 1}}}, "may have weight, split, limit, .* 'wieght'"),
        ({"sources": {"a": {"path": "x", "weight": 0}}}, "sources.a.weight must be above 0"),
        (
            {"sources": {"a": {"path": "x", "weight": 1}, "b": {"path": "y"}}},
            "sources.b.weight must be above 0 .* None",
        ),
        ({"sources": {"a": {"path": "x"}}, "limits": {"train": 3}}, "give sources.NAME.limit instead of limits.train"),
        ({"path": "x", "limits": {"test": 2.5}}, "limit must be at least 1 and a whole number"),
    ],
)
def test_sources_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        SplitSource("train", **options)
    with pytest.raises(ValueError, match="split must be train, validation or test, got 'dev'"):
        SplitSource("dev", path="x")
    with pytest.raises(ValueError, match="shares must be in"):
        Shares(validation=0.6, test=0.5)
