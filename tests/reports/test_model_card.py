import pytest
import yaml

from lightning_minillm.reports.model_card import ModelCard, render_model_card


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_every_part_has_its_section():
    card = ModelCard(
        name="tiny",
        base="facebook/opt-1.3b",
        teacher="runs/teacher",
        method="MiniLLMModule with MiniLLMLoss",
        data={"train": "a|b.jsonl"},
        hyperparameters={"optimizer.betas": [0.9, 0.95], "loss.single_step": True},
        metrics={"val/rougeL": 24.61234},
        chosen_by="val/rougeL",
        command="minillm-train seed=1",
        versions={"torch": "2.6"},
    )
    text = render_model_card(card)
    assert front_matter(text)["base_model"] == "facebook/opt-1.3b"
    for line in (
        "# tiny",
        "| teacher | runs/teacher |",
        "| train | a\\|b.jsonl |",
        "| optimizer.betas | [0.9, 0.95] |",
        "| loss.single_step | true |",
        "| val/rougeL | 24.61 |",
        "minillm-train seed=1",
        "| torch | 2.6 |",
    ):
        assert line in text.splitlines()


def test_what_is_not_known_is_left_out():
    text = render_model_card(ModelCard("tiny", "gpt2", "SFTModule with LanguageModelingLoss"))
    assert "## " not in text
    assert "teacher" not in text


@pytest.mark.parametrize("base", ["runs/init/student", "/models/gpt2", "random weights (gpt2)", "../gpt2", "a b"])
def test_the_hub_is_told_of_no_folder(base):
    assert "base_model" not in front_matter(render_model_card(ModelCard("tiny", base, "SFTModule with X")))
