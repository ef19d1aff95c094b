"""The memory benchmark measures what it says."""

import pytest


def test_a_chunked_case_takes_less_than_all_logits_at_once(script):
    memory = script("memory")
    command = ["--vocabularies", "20000", "--tokens", "4096", "--hidden", "8", "8", "--threads", "1"]
    results = []
    for case in memory.cases(memory.parse(command)):
        with memory.multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(memory.run_case, (case,)))
    chunked, plain = results
    assert chunked["chunk_size"] == "auto"
    assert plain["chunk_size"] is None
    assert plain["peak_mb"] > plain["logits_mb"]
    assert plain["peak_mb"] > 4 * chunked["peak_mb"] > 0


def test_growth_compares_most_tokens_with_fewest(script):
    rows = [(100, "auto", 8, 11.0), (100, "auto", 2, 10.0), (100, "auto", 4, 30.0), (200, "auto", 2, 5.0)]
    names = ("vocabulary", "chunk_size", "tokens", "peak_mb")
    (line,) = script("memory").growth([dict(zip(names, row, strict=True)) for row in rows])
    assert (line["from_tokens"], line["to_tokens"]) == (2, 8)
    assert line["growth_percent"] == pytest.approx(10)


def test_what_would_not_fit_is_left_out(script):
    memory = script("memory")
    found = memory.cases(memory.parse(["--vocabularies", "1000000", "--tokens", "64", "4096", "--limit-gb", "20"]))
    left_out = [(case["chunk_size"], case["tokens"]) for case in found if case["left_out"]]
    assert left_out == [(None, 4096)]


def test_sizes_below_one_are_an_error(script):
    with pytest.raises(SystemExit):
        script("memory").parse(["--tokens", "0"])
