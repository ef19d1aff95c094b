import pytest

from lightning_minillm.evaluation.judge.prompts import ask_for_scores, ask_for_verdict, read_scores, read_verdict


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("A: 8, B: 7", (8, 7)),
        ("A: 8/10, B: 7.5/10\nA is longer.", (8, 7.5)),
        ("**A:** 9 **B:** 10", (9, 10)),
        ('{"A": 3, "B": 4}', (3, 4)),
        ("Response A = 2\nResponse B = 1", (2, 1)),
        ("Score of response B: 6.\nScore of response A: 5.", (5, 6)),
        ("Here are 2 thoughts.\nA: 8 out of 10\nB: 10 out of 10", (8, 10)),
        ("8 7\nThe first one is better in 3 ways.", (8, 7)),
        ("[8, 7]", (8, 7)),
        ("<think>A: 1, B: 1 at first</think>\nA: 8, B: 7", (8, 7)),
        ("a: 4; b: 5", (4, 5)),
        ("A：8分，B：7分\n回答A更详细。", (8, 7)),
        ("回答A：８．５，回答B：6", (8.5, 6)),
        ("（8，7）", (8, 7)),
    ],
)
def test_scores_in_any_spelling(answer, scores):
    assert read_scores(answer) == scores


@pytest.mark.parametrize(
    "answer",
    [
        *("", "Both are good.", "A: 8", "A: 0, B: 7", "A: 8, B: 11", "1 2 3", "A: good, B: bad", "100 90", "-"),
        *("I cannot score. See rules 2 and 4.", "Response 1 is 5 times longer.", "Both get 7 out of 10 for 3 reasons"),
        *("A: -3, B: 5", "A: 8/100, B: 5", "A: 8-9, B: 7", "A: 80%, B: 7", "-3 5"),
    ],
)
def test_no_scores_are_made_up(answer):
    assert read_scores(answer) is None


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("[[A]]", "A"),
        ("[[B]]\nA is wrong.", "B"),
        ("[[tie]]", "tie"),
        ("【【B】】\n回答B更好。", "B"),
        ("[[C]]", "tie"),
        ("I compared them.\nMy verdict: [[ b ]]", "B"),
        ("A", "A"),
        ("**B**\nIt is shorter.", "B"),
        ("Tie.", "tie"),
        ("Response A", "A"),
        ("Both try. The winner is response B.", "B"),
        ("Verdict: tie", "tie"),
        ("<think>[[A]]?</think>[[B]]", "B"),
    ],
)
def test_verdicts_in_any_spelling(answer, verdict):
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        *("", "Hard to say.", "[[A]] or [[B]]", "A is good and B is good", "Winner: A. No, the winner is B."),
        *("Neither is better. A response should be honest.", "It would be better a bit shorter"),
        *("I can't say which is better: a tie would be unfair", "Verdict: A or B, hard to say"),
    ],
)
def test_no_verdict_is_made_up(answer):
    assert read_verdict(answer) is None


@pytest.mark.parametrize("ask", [ask_for_scores, ask_for_verdict])
def test_a_request_shows_everything_as_it_is(ask):
    """Braces in a text are no placeholders, and a response is shown where its letter is."""
    text = ask("Write {first} in JSON", '{"second": 1}', "{prompt}")
    assert "Write {first} in JSON" in text
    assert text.index("[Response A]") < text.index('{"second": 1}') < text.index("[Response B]")
    assert text.index("[Response B]") < text.index("{prompt}") < text.index("[End of response B]")
