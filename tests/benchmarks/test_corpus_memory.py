"""The corpus benchmark measures what it says."""

from lightning_minillm.data import build_tokenizer, generate_corpus


def test_a_corpus_is_written_packed_and_measured(script, tmp_path):
    benchmark = script("corpus_memory")
    benchmark.write_corpus(tmp_path / "a.txt", 0.2)
    assert 2e5 <= (tmp_path / "a.txt").stat().st_size < 2.1e5
    build_tokenizer(generate_corpus(50), 300).save_pretrained(tmp_path / "tokenizer")
    case = benchmark.run_case(0.2, str(tmp_path / "tokenizer"), 64)
    assert case["documents"] > 100
    assert 0.1 < case["tokens_mb"] < 1
