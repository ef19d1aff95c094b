import pytest
import torch
from torch import nn
from transformers import DynamicCache

from lightning_minillm.models import SplitCausalLM
from lightning_minillm.models import split as split_file

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
# families whose logits are not just head(hidden), with a value of the setting that shows
SCALED = {
    "gemma2": {**SMALL, "final_logit_softcapping": 2.0, "sliding_window": 8},
    "cohere": {**{k: v for k, v in SMALL.items() if k != "head_dim"}, "logit_scale": 0.37},
    "granite": {**{k: v for k, v in SMALL.items() if k != "head_dim"}, "logits_scaling": 3.0},
}


def own_logits(model, prompts):
    """The model's logits of every row alone, without padding."""
    rows = []
    for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True):
        with torch.no_grad():
            rows.append(model(input_ids=ids[mask][None]).logits[0])
    return rows


def test_left_padding_changes_no_logits(family, make_model, make_prompts):
    model, prompts = make_model(family), make_prompts((9, 3, 7, 1), width=11)
    split = SplitCausalLM(model)
    assert split.is_split
    with torch.no_grad():
        hidden, cache = split.hidden(prompts.input_ids, prompts.attention_mask)
    assert cache is None
    assert hidden.shape[-1] == split.hidden_size
    for row, expected in enumerate(own_logits(model, prompts)):
        given = split.project(hidden[row][prompts.attention_mask[row]])
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCALED)
def test_soft_caps_and_scales_are_the_models(name, make_model, make_prompts):
    model, prompts = make_model(name, **SCALED[name]), make_prompts((6, 6))
    split = SplitCausalLM(model)
    assert split.is_split
    with torch.no_grad():
        hidden, _ = split.hidden(prompts.input_ids, prompts.attention_mask)
        expected = model(input_ids=prompts.input_ids).logits
    torch.testing.assert_close(split.project(hidden), expected)
    # the setting is no no-op here: the bare head gives something else
    assert (model.get_output_embeddings()(hidden) - expected).abs().max() > 0.1


class OddHead(nn.Module):
    """Stands for a family that does something to its logits that the package does not know."""

    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.config = model.config
        self.base_model = model.base_model

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **kwargs):
        output = self.inner(**kwargs)
        output.logits = output.logits.sin()
        return output


def test_a_head_that_cannot_be_split_falls_back_to_its_own_logits(make_model, make_prompts):
    model, prompts = OddHead(make_model("gpt2")).eval(), make_prompts((6, 4))
    with pytest.warns(UserWarning, match="cannot be told from its body"):
        split = SplitCausalLM(model)
    assert not split.is_split
    with torch.no_grad():
        hidden, _ = split.hidden(prompts.input_ids, prompts.attention_mask)
    assert hidden.shape[-1] == split.hidden_size
    for row, expected in enumerate(own_logits(model.inner, prompts)):
        given = split.project(hidden[row][prompts.attention_mask[row]])
        torch.testing.assert_close(given, expected.sin(), rtol=1e-4, atol=1e-4)


class Failing(nn.Module):
    """Stands for a model whose forward pass raises."""

    def __init__(self, model, error):
        super().__init__()
        self.inner, self.error = model, error
        self.config, self.base_model = model.config, model.base_model

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **kwargs):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_not_taken_for_an_odd_head(error, make_model):
    model = Failing(make_model("gpt2"), error).train()
    with pytest.raises(RuntimeError, match="memory"):
        SplitCausalLM(model)
    assert model.training


def test_the_warning_says_why_a_model_cannot_be_split(make_model):
    with pytest.warns(UserWarning, match="cannot be told from its body .*TypeError: no such argument"):
        assert not SplitCausalLM(Failing(make_model("gpt2"), TypeError("no such argument"))).is_split


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_a_model_leaves_its_mode_and_gradients_alone(make_model, training):
    model = make_model("gpt2").train(training)
    SplitCausalLM(model)
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def test_token_states_are_those_before_the_targets(make_model, make_prompts):
    model, prompts = make_model("llama"), make_prompts((6, 4, 2))
    target_mask = prompts.attention_mask.clone()
    target_mask[torch.arange(3), prompts.attention_mask.int().argmax(-1)] = False
    states, ids = SplitCausalLM(model).token_states(prompts.input_ids, prompts.attention_mask, target_mask)
    logits = own_logits(model, prompts)
    torch.testing.assert_close(states.logits(), torch.cat([rows[:-1] for rows in logits]), rtol=1e-4, atol=1e-4)
    assert torch.equal(ids, prompts.input_ids[target_mask])


def test_gradients_are_those_of_the_whole_model(make_model, make_prompts):
    model, prompts = make_model("gpt2"), make_prompts((5, 5))
    loss = model(input_ids=prompts.input_ids).logits.square().mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    split = SplitCausalLM(model)
    hidden, _ = split.hidden(prompts.input_ids, prompts.attention_mask)
    given = torch.autograd.grad(split.project(hidden).square().mean(), list(model.parameters()))
    torch.testing.assert_close(given, expected)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_a_cache_that_does_not_come_back_is_an_error(make_model, make_prompts):
    from transformers import DynamicCache

    model, prompts = make_model("gpt2").train(), make_prompts((5, 5))
    model.gradient_checkpointing_enable()
    split = SplitCausalLM(model)
    with pytest.raises(RuntimeError, match="no key-value cache"):
        split.hidden(prompts.input_ids, prompts.attention_mask, cache=DynamicCache(config=model.config))


@pytest.mark.parametrize("split_head", [True, False])
def test_a_vocabulary_cuts_the_logits_to_the_leading_ids(split_head, make_model, make_prompts):
    model, prompts = make_model("gpt2"), make_prompts((6, 4))
    split = SplitCausalLM(model, vocabulary=30)
    split.is_split = split_head
    with torch.no_grad():
        hidden, _ = split.hidden(prompts.input_ids, prompts.attention_mask)
        expected, _ = SplitCausalLM(model).hidden(prompts.input_ids, prompts.attention_mask)
    assert split.project(hidden).shape == (2, 6, 30)
    torch.testing.assert_close(split.project(hidden), SplitCausalLM(model).project(expected)[..., :30])


@pytest.mark.parametrize("tokens_together", [1, 12, 10_000])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_token_states_are_those_of_rows_alone(family, side, tokens_together, make_model, monkeypatch):
    """Whichever side is padded and however rows are grouped; targets stay in row-major order, gradients too."""
    monkeypatch.setitem(split_file._FEWEST_TOKENS, "cpu", tokens_together)
    split = SplitCausalLM(make_model(family, seed=1))
    generator = torch.Generator().manual_seed(0)
    lengths, width = (3, 9, 2, 6, 9, 4), 12
    ids, mask = torch.randint(1, 37, (6, width), generator=generator), torch.zeros(6, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = {"left": width - length, "right": 0, "both": (width - length) // 2}[side]
        mask[row, start : start + length] = True
    targets = mask & (mask.cumsum(-1) > 1) & (torch.rand(6, width, generator=generator) < 0.7)
    states, target_ids = split.token_states(ids, mask, targets)
    expected, expected_ids = [], []
    for row in range(6):
        row_ids, row_targets = ids[row][mask[row]], targets[row][mask[row]]
        hidden, _ = split.hidden(row_ids[None], None)
        expected.append(hidden[0, :-1][row_targets[1:]])
        expected_ids.append(row_ids[row_targets])
    torch.testing.assert_close(states.hidden, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(target_ids, torch.cat(expected_ids))
    weights = torch.randn(states.hidden.shape, generator=generator)
    parameters = list(split.model.base_model.parameters())
    given = torch.autograd.grad((weights * states.hidden).sum(), parameters, allow_unused=True)
    alone = torch.autograd.grad((weights * torch.cat(expected)).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(given, alone, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_an_unknown_compiler_is_an_error_that_names_the_known(make_model):
    with pytest.raises(ValueError, match=r"unknown torch\.compile backend 'fast'.*inductor"):
        SplitCausalLM(make_model("gpt2")).compile("fast")


def test_a_compiled_model_gives_the_same_states_at_any_shape(family, make_model):
    model = make_model(family, seed=1)
    plain, compiled = SplitCausalLM(model), SplitCausalLM(model)
    compiled.compile("eager")
    for rows, width in ((3, 7), (2, 12)):
        ids = torch.randint(1, 30, (rows, width), generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids, dtype=torch.bool)
        targets = mask.clone()
        targets[:, 0] = False
        expected, actual = (split.token_states(ids, mask, targets)[0].hidden for split in (plain, compiled))
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "config", "cache_name"),
    [
        ("openai-gpt", {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64}, None),
        ("mamba", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2}, "cache_params"),
        ("llama", {}, "past_key_values"),
    ],
)
def test_models_train_whatever_they_call_their_cache(name, config, cache_name, make_model, make_prompts):
    model, prompts = make_model(name, **config), make_prompts((6, 4, 1))
    split = SplitCausalLM(model)
    assert split.cache_name == cache_name
    targets = prompts.attention_mask & (prompts.attention_mask.cumsum(-1) > 1)
    states, ids = split.token_states(prompts.input_ids, prompts.attention_mask, targets)
    expected = torch.cat([logits[:-1] for logits in own_logits(model, prompts)])
    torch.testing.assert_close(states.logits(), expected, rtol=1e-4, atol=1e-4)
    torch.nn.functional.cross_entropy(states.logits(), ids).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_model_without_a_cache_takes_none(make_model, make_prompts):
    prompts = make_prompts((4,))
    split = SplitCausalLM(make_model("openai-gpt", n_layer=2, n_head=2, n_embd=16, n_positions=64))
    with pytest.raises(RuntimeError, match="OpenAIGPTLMHeadModel takes no cache"):
        split.hidden(prompts.input_ids, prompts.attention_mask, cache=DynamicCache())


def test_weights_stay_as_they_are_in_eval_mode(make_model):
    """RWKV halves the weights of every sixth layer for float16; an export would contain the halves."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 8, "attention_hidden_size": 16, "context_length": 64}
    model = make_model("rwkv", **sizes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = SplitCausalLM(model)
    with torch.no_grad():
        split.hidden(torch.arange(1, 5)[None], None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_excluded_ids_do_not_hide_the_head(make_model, make_prompts):
    model, prompts = make_model("llama"), make_prompts((6, 6))
    split = SplitCausalLM(model, 30, (2, 3, 35))
    assert split.is_split
    with torch.no_grad():
        logits = split.project(split.hidden(prompts.input_ids, None)[0])
        expected = model(input_ids=prompts.input_ids).logits[..., :30]
    known = [index for index in range(30) if index not in (2, 3)]
    torch.testing.assert_close(logits[..., known], expected[..., known])
    assert logits.softmax(-1)[..., [2, 3]].sum() == 0
