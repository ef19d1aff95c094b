"""TRL as a peer: clear about what it needs, and fed the same ids."""

from types import SimpleNamespace

import pytest

OPTIONS = ["--student=s", "--teacher=t", "--prompts=p", "--peer=trl"]


def test_without_trl_it_says_how_to_get_it(script, monkeypatch):
    peer = script("trl_schedule")
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trl"):
        script("reference_schedule").main(OPTIONS)


def test_options_that_trl_has_not_are_an_error(script, monkeypatch):
    peer = script("trl_schedule")
    monkeypatch.setattr(peer, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="--teacher-mix-alpha 0 --ppo-epochs 1 --no-lm"):
        script("reference_schedule").main(OPTIONS)


def test_the_tokenizer_gives_back_the_ids(script):
    workload = SimpleNamespace(eos_token_ids=[3], pad_token_id=3)
    peer = script("trl_schedule")
    tokenizer = peer.tokenizer_of_numbers(50, workload)
    ids = [7, 43, 0, 12, 33, 30]
    assert tokenizer(peer.as_text(ids))["input_ids"] == ids
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 3
