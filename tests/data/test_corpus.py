import gzip
import json
import os
import tracemalloc

import datasets
import pytest
import torch

from lightning_minillm.data import CorpusSource, PackedCorpus, generate_corpus


def all_tokens(corpus):
    return corpus.token_batch(range(len(corpus)), 1.0).input_ids.flatten()


def test_blocks_hold_the_documents_joined_by_eos(tokenizer):
    documents = generate_corpus(20)
    corpus = PackedCorpus(documents, tokenizer, max_length=16)
    expected = [token for text in documents for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id]]
    assert corpus.num_documents == 20
    assert len(corpus) == len(expected) // 16
    assert all_tokens(corpus).tolist() == expected[: len(corpus) * 16]


def test_all_tokens_but_the_first_are_targets(tokenizer):
    corpus = PackedCorpus(generate_corpus(20), tokenizer, max_length=16)
    batch = corpus.token_batch(torch.tensor([3, 1]), normalizer=2.5)
    assert batch.input_ids.shape == (2, 16)
    assert batch.normalizer == 2.5
    assert batch.attention_mask.all()
    assert not batch.target_mask[:, 0].any()
    assert batch.target_mask[:, 1:].all()
    assert corpus.target_counts.tolist() == [15] * len(corpus)
    assert batch.indices.tolist() == [3, 1]


def test_text_files_by_line_paragraph_and_file(tmp_path):
    text = "one\ntwo\n\nthree<@x(x!>four\n"
    (tmp_path / "a.txt").write_text(text)
    with gzip.open(tmp_path / "b.txt.gz", "wt") as handle:
        handle.write(text)
    for name in ("a.txt", "b.txt.gz"):
        path = str(tmp_path / name)
        assert list(CorpusSource(path).documents()) == ["one", "two", "three<@x(x!>four"]
        marked = CorpusSource(path, newline_marker="<@x(x!>")
        assert list(marked.documents()) == ["one", "two", "three\nfour"]
        assert list(CorpusSource(path, documents_are="paragraphs").documents()) == ["one\ntwo", "three<@x(x!>four"]
        assert list(CorpusSource(path, documents_are="files").documents()) == [text.rstrip()]
    assert list(CorpusSource(str(tmp_path), limit=4).documents()) == ["one", "two", "three<@x(x!>four", "one"]
    several = CorpusSource([str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")])
    assert len(list(several.documents())) == 6


def test_separators_other_than_a_newline_stay_in_the_text(tmp_path):
    text = "one\u2028two\x85three\x0cfour"
    (tmp_path / "a.txt").write_text(f"{text}\nfive\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(CorpusSource(str(tmp_path / "a.txt")).documents()) == [text, "five"]
    assert list(CorpusSource(str(tmp_path / "a.jsonl")).documents()) == [text]


def test_jsonl_and_folders_of_it(tmp_path):
    rows = [{"text": "one", "title": "t"}, {"text": "  "}, {"text": "two"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(CorpusSource(str(tmp_path / "train.jsonl")).documents()) == ["one", "two"]
    assert list(CorpusSource(str(tmp_path), split="train").documents()) == ["one", "two"]
    with pytest.raises(ValueError, match=r"line 1: no field 'body' for the text; the row has 'text', 'title'"):
        list(CorpusSource(str(tmp_path / "train.jsonl"), field="body").documents())


def test_cache_follows_the_file(tmp_path, tokenizer):
    file, cache = tmp_path / "a.txt", tmp_path / "cache"
    file.write_text("\n".join(generate_corpus(20)))
    source = CorpusSource(str(file))
    first = PackedCorpus(source, tokenizer, max_length=16, cache_dir=cache)
    second = PackedCorpus(source, tokenizer, max_length=16, cache_dir=cache)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert torch.equal(all_tokens(first), all_tokens(second))
    assert not PackedCorpus(source, tokenizer, max_length=17, cache_dir=cache).from_cache
    os.utime(file, ns=(1, 1))
    assert not PackedCorpus(source, tokenizer, max_length=16, cache_dir=cache).from_cache
    assert not PackedCorpus(generate_corpus(20), tokenizer, max_length=16, cache_dir=cache).from_cache
    assert PackedCorpus(generate_corpus(20), tokenizer, max_length=16, cache_dir=cache).from_cache


def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer):
    texts, peaks = generate_corpus(100), []
    for copies in (5, 50):
        (tmp_path / "a.txt").write_text("\n".join(texts * copies))
        tracemalloc.start()
        corpus = PackedCorpus(CorpusSource(tmp_path / "a.txt"), tokenizer, max_length=16, cache_dir=tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert corpus.num_documents == 100 * copies
    assert peaks[1] - peaks[0] < 0.1 * len(corpus) * 16 * 4


def test_blocks_are_the_same_from_memory_the_cache_and_in_small_batches(tmp_path, tokenizer, monkeypatch):
    documents = generate_corpus(40)
    first = all_tokens(PackedCorpus(documents, tokenizer, max_length=16))
    assert torch.equal(all_tokens(PackedCorpus(documents, tokenizer, max_length=16, cache_dir=tmp_path)), first)
    monkeypatch.setattr("lightning_minillm.data.corpus._BATCH_CHARACTERS", 300)
    assert torch.equal(all_tokens(PackedCorpus(documents, tokenizer, max_length=16)), first)


def test_a_corpus_that_is_too_short_leaves_nothing_in_the_cache(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="less than one block"):
        PackedCorpus(["short"], tokenizer, max_length=64, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_more_than_the_limit_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\nnothing\n')
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n" + b"x" * 200_000 + b"\xff")
    for name in ("a.jsonl", "a.txt"):
        assert list(CorpusSource(tmp_path / name, limit=2).documents()) == ["one", "two"]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append(options) or [{"text": "a"}] * 9)
    assert list(CorpusSource("x/y", split="train", limit=2, revision="v1").documents()) == ["a", "a"]
    assert len(list(CorpusSource("x/y", split="train").documents())) == 9
    assert asked == [{"split": "train", "revision": "v1", "streaming": True}, {"split": "train"}]


def test_documents_that_are_not_text_or_not_utf8_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    for row, message in (
        ({"text": ["a"]}, "line 1: the field 'text' holds a list, not text"),
        ({"texts": "a"}, r"no field 'text' for the text; the row has 'texts'; did you mean texts\?"),
    ):
        file.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=message):
            list(CorpusSource(file).documents())
    (tmp_path / "a.txt").write_bytes(b"one\n\xe4\n")
    with pytest.raises(ValueError, match=r"line 2 of .*a.txt' is not UTF-8 text"):
        list(CorpusSource(tmp_path / "a.txt").documents())
    (tmp_path / "a.txt.gz").write_bytes(b"one\n")
    with pytest.raises(ValueError, match=r"a.txt.gz' is not a complete gzip file"):
        list(CorpusSource(tmp_path / "a.txt.gz").documents())


def test_errors(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="less than one block of max_length=64"):
        PackedCorpus(["short"], tokenizer, max_length=64)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        PackedCorpus(["text"], tokenizer, max_length=1)
    with pytest.raises(TypeError, match="CorpusSource"):
        PackedCorpus("corpus.txt", tokenizer, max_length=8)
    with pytest.raises(ValueError, match="documents_are"):
        CorpusSource("a.txt", documents_are="words")
    with pytest.raises(ValueError, match="limit"):
        CorpusSource("a.txt", limit=0)
    with pytest.raises(FileNotFoundError, match="there is no text file"):
        list(CorpusSource(str(tmp_path / "none.txt")).documents())
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(ValueError, match="unknown format"):
        list(CorpusSource(str(tmp_path / "a.xyz")).documents())


def test_real_corpora(real_data, tokenizer):
    folder = real_data / "corpus"
    articles = CorpusSource(str(folder / "wikipedia_articles.jsonl.gz"), limit=5)
    assert len(PackedCorpus(articles, tokenizer, max_length=128)) > 5
    official = CorpusSource(str(folder / "openwebtext_minillm_example.txt"), newline_marker="<@x(x!>")
    texts = list(official.documents())
    assert len(texts) == 11
    assert any("\n" in text for text in texts)
