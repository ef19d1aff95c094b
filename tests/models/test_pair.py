import torch

from lightning_minillm.models import freeze


def test_a_frozen_teacher_is_in_eval_mode_and_takes_no_gradient(make_model, make_prompts):
    model = make_model("gpt2").train()
    assert freeze(model) is model
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(input_ids=make_prompts((4,)).input_ids).logits.requires_grad
    assert torch.equal(*(model(input_ids=make_prompts((4,)).input_ids).logits for _ in range(2)))
