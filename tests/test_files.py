"""Files are complete or absent, JSON Lines survive a kill and any text, digests do not depend on the process."""

import gzip
import os

import pytest

from lightning_minillm import files


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    files.write_text(file, "old")
    with pytest.raises(RuntimeError, match="stop"), files.replacing(file) as scratch:  # noqa: PT012
        scratch.write_text("half")
        raise RuntimeError("stop")
    assert file.read_text() == "old"
    assert os.listdir(file.parent) == ["a.txt"]


def test_a_folder_is_complete_or_absent(tmp_path):
    place = tmp_path / "set"
    for name in ("old", "new"):
        with files.replacing(place) as scratch:
            scratch.mkdir()
            (scratch / name).write_text("x")
        assert os.listdir(place) == [name]
    with pytest.raises(RuntimeError, match="stop"), files.replacing(place) as scratch:  # noqa: PT012
        scratch.mkdir()
        (scratch / "half").write_text("x")
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == ["set"]
    assert os.listdir(place) == ["new"]


def test_a_durable_file_replaces_a_folder(tmp_path):
    place = tmp_path / "last.ckpt"
    (place / "inside").mkdir(parents=True)
    with files.replacing(place, durable=True) as scratch:
        scratch.write_bytes(b"whole")
    assert place.read_bytes() == b"whole"


def test_json_that_is_not_there_is_none(tmp_path):
    assert files.read_json(tmp_path / "a.json") is None
    files.write_json(tmp_path / "a.json", {"é": 1})
    assert files.read_json(tmp_path / "a.json") == {"é": 1}


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\rb", "a\r\nb", "a\x0cb", "é😀"])
def test_json_lines_keep_every_text(tmp_path, text):
    rows = [{"text": text}, {"text": "next"}]
    files.write_json_lines(tmp_path / "a.jsonl", rows)
    files.append_json_lines(tmp_path / "a.jsonl", [{"text": text * 2}])
    assert list(files.iterate_json_lines(tmp_path / "a.jsonl")) == [*rows, {"text": text * 2}]


def test_json_lines_may_be_gzipped_with_a_byte_order_mark_and_blank_lines(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8-sig", newline="") as file:
        file.write('{"a": 1}\r\n\n{"a": 2}\n')
    assert list(files.numbered_json_lines(tmp_path / "a.jsonl.gz")) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(("content", "kept"), [(b'{"a": 1}\n{"a"', b'{"a": 1}\n'), (b'{"a"', b""), (b"", b"")])
def test_a_cut_line_is_dropped(tmp_path, content, kept):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    files.drop_cut_line(file)
    assert file.read_bytes() == kept


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\nnothing\n')
    with pytest.raises(ValueError, match=r"line 2 of .*a.jsonl"):
        list(files.iterate_json_lines(file))


def test_digests_tell_texts_apart_that_join_to_the_same():
    assert files.digest({}, ["ab", "c"]) != files.digest({}, ["a", "bc"])
    assert files.digest({}, ["ab", "c"]) == files.digest({}, iter(["ab", "c"]))


def test_a_folder_is_known_by_its_content_wherever_it_is(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * 200_000)
    assert files.digest_of_files(tmp_path / "one") == files.digest_of_files(tmp_path / "two")
    with open(tmp_path / "two" / "weights", "rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"y")
    assert files.digest_of_files(tmp_path / "one") != files.digest_of_files(tmp_path / "two")
    assert files.digest_of_files("org/name") == "org/name"


def test_a_change_in_the_middle_of_a_large_file_shows_when_it_is_read_whole(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"x" * 200_000)
    with open(tmp_path / "two", "rb+") as file:
        file.seek(100_000)
        file.write(b"y")
    one, two = (files.digest_of_files(tmp_path / name, whole=True) for name in ("one", "two"))
    assert one != two
    assert files.digest_of_files(tmp_path / "one") == files.digest_of_files(tmp_path / "two")
