import dataclasses

import pytest

from lightning_minillm.distributed.memory_plan import GIB, Workload, model_size, plan_memory

WORK = Workload(rollout_rows=4, micro_batch_rows=2, length=10)


def test_a_model_is_counted_as_it_is(make_model, family):
    model = make_model(family)
    size = model_size(model.config)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.num_layers == 2
    layers = [m for m in model.modules() if type(m).__name__ in model._no_split_modules]
    assert size.layer_parameters == sum(p.numel() for p in layers[0].parameters())


def test_caches_hold_what_the_model_keeps(make_model, family):
    model = make_model(family)
    cache = model(input_ids=model.dummy_inputs["input_ids"] % 37, use_cache=True).past_key_values
    rows, _, length, _ = cache.layers[0].keys.shape
    numbers = sum(layer.keys[:, :, :1].numel() + layer.values[:, :, :1].numel() for layer in cache.layers)
    assert length > 0
    assert numbers == rows * model_size(model.config).kv_size * 2


def test_shards_divide_what_is_kept(make_model):
    student, teacher = model_size(make_model("gpt2").config), model_size(make_model("llama").config)
    whole = plan_memory(student, teacher, WORK, ranks=4, sharded=False)["update"]
    parts = plan_memory(student, teacher, WORK, ranks=4, sharded=True)["update"]
    for name in ("student, float32", "gradients", "AdamW", "teacher"):
        assert parts[name] == pytest.approx(whole[name] / 4)
    assert whole["AdamW"] == pytest.approx(2 * whole["gradients"])
    assert whole["AdamW"] * GIB == pytest.approx(8 * student.parameters)
    assert parts["activations"] == whole["activations"]


def test_memory_grows_with_rows(make_model):
    size = model_size(make_model("llama").config)
    small = plan_memory(size, size, WORK, ranks=1, sharded=True)["rollout"]
    large = plan_memory(size, size, dataclasses.replace(WORK, rollout_rows=8), ranks=1, sharded=True)["rollout"]
    assert large["key-value caches"] == pytest.approx(2 * small["key-value caches"])
    assert large["gathered models"] == small["gathered models"] > 0
