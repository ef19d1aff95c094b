"""Rows keep what a file says, and a file that cannot be read says where and why."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_minillm.data.rows import iterate_rows

ROWS = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]


def rows_of(path, **options):
    return [dict(row) for _, row in iterate_rows(path, **options)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks_line_endings_and_other_separators(tmp_path, name, ending, mark):
    """Only a newline ends a line; U+2028, U+2029, U+0085 and a form feed belong to the text."""
    text = "e\u2028f\u2029g\x85h\x0ci"
    if "json" in name:
        lines = [json.dumps(row, ensure_ascii=False) for row in ({"a": "1", "b": text}, {"a": "2", "b": "y"})]
    else:
        separator = "\t" if "tsv" in name else ","
        lines = [separator.join(cells) for cells in (("a", "b"), ("1", text), ("2", "y"))]
    content = (mark + "".join(line + ending for line in lines)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert rows_of(tmp_path / name) == [{"a": "1", "b": text}, {"a": "2", "b": "y"}]


@pytest.mark.parametrize(
    "content",
    [
        {"a": ["1", "2"], "b": ["x", "y"]},
        {"a": {"0": "1", "1": "2"}, "b": {"0": "x", "1": "y"}},  # as pandas writes a table
        {"data": ROWS},
        ROWS,
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_tables_in_json(tmp_path, content, indent):
    (tmp_path / "a.json").write_text(json.dumps(content, indent=indent))
    assert rows_of(tmp_path / "a.json") == ROWS


def test_one_conversation_in_a_json_file_is_a_record_and_no_table(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "b"}]}
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert rows_of(tmp_path / "a.json") == [row]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', r"line 2 of .*a.jsonl' cannot be used: .* the key 'a' more than"),
        ("a.json", b'[{"a": {"b": 1, "b": 2}}]', r"a.json' cannot be used: an object has the key 'b' more than once"),
        ("a.json", b'{"a": [1, 2], "b": [1]}', "columns of different lengths: 'a' 2, 'b' 1"),
        ("a.json", b'{\n"a": "x",\n"b": "y"}', "expected a list of objects, an object with a list under 'data', or"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"line 3 of .* is not valid JSON: Expecting value \(column"),
        ("a.jsonl", b'["a"]\n', "line 1: expected a JSON object, got list"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* cannot be used: .*recursion"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv' has the column 'a' more than once: keep or rename one of them"),
        ("a.csv", b"a,b\n1\n", r"cannot be read as csv: line 2: 1 cells, and the header has 2 \(a, b\)"),
        ("a.csv", b'a,b\n1,"2\n', "cannot be read as csv: line 2: unexpected end of data"),
        ("a.csv", b"a,b\n1,2\n\xe4,3\n", "line 3 of .*a.csv' is not UTF-8 text: save the file in UTF-8"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xe4"}\n', "line 2 of .*a.jsonl' is not UTF-8 text"),
        ("a.json", '[{"a": "x"}]'.encode("utf-16"), "line 1 of .*a.json' is not UTF-8 text"),
        ("a.jsonl.gz", b'{"a": 1}\n', "a.jsonl.gz' is not a complete gzip file .*: copy it again, or rename it"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-30], "a.jsonl.gz' is not a complete gzip file"),
        ("a.parquet", b"PAR1", "a.parquet' cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


def test_columns_of_parquet_are_told_apart(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has the column 'a' more than once"):
        rows_of(tmp_path / "a.parquet")


def test_long_cells_and_cells_of_several_lines(tmp_path):
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f'a,b\n"1,\n2",{long}\n')
    assert rows_of(tmp_path / "a.csv") == [{"a": "1,\n2", "b": long}]


def test_folders_are_read_whole_unless_their_files_are_of_several_splits(tmp_path):
    for name in ("part-0.jsonl", "part-1.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0]))
    assert rows_of(tmp_path) == [ROWS[0]] * 2
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROWS[1]))
    with pytest.raises(ValueError, match=r"files of several splits \(part-0.jsonl, .*validation.jsonl\): give the"):
        rows_of(tmp_path)
    assert rows_of(tmp_path, split="validation") == ROWS[1:]


def test_a_copy_of_a_hub_data_set_is_read_from_its_data_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert rows_of(tmp_path, split="train") == rows_of(tmp_path) == ROWS[:1]


def test_several_paths_are_read_in_order_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "b.csv").write_text("a,b\n2,y\n")
    assert rows_of([tmp_path / "a.jsonl", "~/b.csv"]) == ROWS
    assert rows_of("~/a.jsonl") == ROWS[:1]


def test_a_missing_file_names_a_similar_one(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no data file .*trian.jsonl'.*; did you mean train.jsonl\?"):
        rows_of(tmp_path / "trian.jsonl")
    with pytest.raises(ValueError, match=r"no file or folder 'my_data' .* for a hub data set of this name, give the"):
        rows_of("my_data")


def test_only_the_rows_that_are_asked_for_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\nnothing\n')
    rows = iterate_rows(tmp_path / "a.jsonl")
    assert [next(rows)[1], next(rows)[1]] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line 3"):
        next(rows)


def test_hub_data_sets_are_streamed_and_read_from_the_cache_offline(monkeypatch):
    asked = []

    def load_dataset(path, name, split, streaming=False):
        asked.append(streaming)
        if streaming:
            raise ConnectionError("offline")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert rows_of("someone/some-set", split="train", streaming=True) == ROWS
    assert asked == [True, False]
    assert rows_of("someone/some-set", split="train[:2]", streaming=True) == ROWS
    assert asked == [True, False, False]
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match="could not be loaded from the hub: ConnectionError: offline"):
        rows_of("someone/some-set", split="train", streaming=True)


def test_a_missing_configuration_of_a_hub_data_set_is_named(monkeypatch):
    def load_dataset(*args, **options):
        raise ValueError("Config name is missing. Please pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"\['main', 'socratic'\]; give one of them as name"):
        rows_of("gsm8k", split="train")
