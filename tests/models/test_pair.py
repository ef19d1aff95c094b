import pytest
import torch

from lightning_minillm.models import ModelPair


def test_a_teacher_is_in_eval_mode_and_takes_no_gradient(make_model, make_prompts, tokenizer):
    model = make_model("gpt2").train()
    pair = ModelPair(make_model("gpt2"), tokenizer, lambda: model)
    assert pair.teacher is model
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(input_ids=make_prompts((4,)).input_ids).logits.requires_grad
    assert torch.equal(*(model(input_ids=make_prompts((4,)).input_ids).logits for _ in range(2)))


@pytest.mark.parametrize(("method", "moves"), [("gptq", True), ("fp8", True), (None, True), ("bitsandbytes", False)])
def test_a_quantised_teacher_goes_to_the_device_unless_bitsandbytes_holds_it(make_model, tokenizer, method, moves):
    teacher = make_model("llama")
    teacher.is_quantized, teacher.quantization_method = True, method
    pair = ModelPair(make_model("llama"), tokenizer, teacher)
    pair.place_teacher(torch.device("meta"))
    assert all(parameter.is_meta == moves for parameter in teacher.parameters())
