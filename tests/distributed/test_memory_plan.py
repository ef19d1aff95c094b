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
    assert numbers == rows * model_size(model.config).kv_size


HEADS = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 8}


@pytest.mark.parametrize(
    ("architecture", "config", "per_token", "per_row"),
    [
        ("falcon", {**HEADS, "multi_query": True, "new_decoder_architecture": False}, 2 * 2 * 4, 0),
        ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 8}, 2 * 2 * 4, 0),
        ("mamba", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2}, 0, 2 * 32 * (4 + 4)),
    ],
)
def test_caches_of_few_heads_and_of_states(make_model, architecture, config, per_token, per_row):
    """Multi-query attention keeps one head; Mamba keeps 32 channels of a convolution of 4 and of 4 states."""
    size = model_size(make_model(architecture, **config).config)
    assert (size.kv_size, size.state_size) == (per_token, per_row)


def test_layers_may_differ(make_model):
    """A first dense layer beside mixtures of experts: the largest layer is not all layers' size."""
    config = {**HEADS, "intermediate_size": 512, "first_k_dense_replace": 1, "moe_intermediate_size": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 12, "v_head_dim": 16}
    model = make_model("deepseek_v3", num_key_value_heads=8, **config, **experts, **latent)
    size = model_size(model.config)
    layers = sum(p.numel() for p in model.model.layers.parameters())
    assert size.outer_parameters == size.parameters - layers > 0
    assert size.kv_size == 2 * (8 + 4)  # the compressed keys and values, and the rotated part of the keys


def test_a_cache_that_cannot_be_measured_is_estimated(make_model):
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.warns(UserWarning, match="BioGptForCausalLM cannot be measured without weights"):
        assert model_size(make_model("biogpt", **config).config).kv_size == 2 * 2 * 16


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
