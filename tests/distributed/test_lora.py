"""Adapters under FSDP2: they alone are trained, and merge into the exported folder."""

import runpy
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

train = runpy.run_path(str(Path(__file__).parent / "scenarios.py"), run_name="scenarios")["train"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_lora_under_fsdp_equals_lora_in_one_process(ranks, run_ranks, tmp_path, make_model):
    options = {"lora": True, "steps": 6, "lr": 5e-3}
    expected = run_ranks(train, 1, **options)[0]["weights"]
    folder = tmp_path / "student"
    given = run_ranks(train, ranks, strategy="fsdp", export=str(folder), **options)[0]["weights"]
    assert given.keys() == expected.keys()
    before = make_model("llama", seed=1).state_dict()
    moved = 0
    for name, value in expected.items():
        assert float((given[name] - value).abs().max()) < 1e-5
        if ".lora_" not in name:
            assert (given[name] == before[name.replace(".base_layer", "")]).all()
        elif ".lora_B." in name:
            moved += int(value.abs().max() > 1e-3)
    assert moved > 10
    merged = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert merged.keys() == before.keys()
    assert sum(int((merged[name] - before[name]).abs().max() > 1e-4) for name in before) > 10
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
