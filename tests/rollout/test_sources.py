"""Whose text a phase is on, by writers that say who wrote."""

import pytest

from lightning_minillm.rollout.sources import MixedText, ReferenceText, StudentText, TeacherText, TextRequest


@pytest.fixture
def ask(make_prompts):
    """``ask(source, phase)``: who wrote the phase's text."""
    prompts = make_prompts((3, 5))

    def writer(name):
        def write(given):
            assert given is prompts
            return name

        return write

    def make(source, phase=0, seed=0):
        writers = {name: writer(name) for name in ("reference", "student", "teacher")}
        return source.text(TextRequest(prompts, phase, 0.0, seed, **writers))

    return make


def test_each_source_asks_its_own_writer(ask):
    assert ask(ReferenceText()) == "reference"
    assert ask(TeacherText()) == "teacher"
    assert ask(StudentText()) == "student"
    assert ask(StudentText(0.0)) == "reference"


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8])
def test_lambda_is_the_share_of_student_text(ask, fraction):
    written = [ask(StudentText(fraction), phase) for phase in range(1000)]
    assert written.count("student") / 1000 == pytest.approx(fraction, abs=0.05)
    assert set(written) == {"student", "reference"}


def test_a_phase_has_the_same_turn_whenever_it_is_asked(ask):
    """Ranks, and a run that goes on, agree; another seed differs."""
    turns = [ask(StudentText(0.5), phase) for phase in range(30)]
    assert turns == [ask(StudentText(0.5), phase) for phase in range(30)]
    assert turns != [ask(StudentText(0.5), phase, seed=1) for phase in range(30)]


def test_mixed_text_draws_by_weight(ask):
    source = MixedText(
        {"r": ReferenceText(), "t": TeacherText(), "s": StudentText(), "never": TeacherText()},
        {"r": 1, "t": 2, "s": 1, "never": 0},
    )
    written = [ask(source, phase) for phase in range(1000)]
    assert written.count("teacher") / 1000 == pytest.approx(0.5, abs=0.05)
    assert written.count("student") / 1000 == pytest.approx(0.25, abs=0.05)


def test_draws_of_a_mixture_and_of_its_sources_are_independent(ask):
    source = MixedText({"s": StudentText(0.5), "t": TeacherText()}, {"s": 0.5, "t": 0.5})
    written = [ask(source, phase) for phase in range(1000)]
    for name, share in (("student", 0.25), ("reference", 0.25), ("teacher", 0.5)):
        assert written.count(name) / 1000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentText(1.5), "student_fraction must be in"),
        (lambda: MixedText({"a": TeacherText()}, {"b": 1.0}), "must have the same names"),
        (lambda: MixedText({"a": TeacherText()}, {"a": -1.0}), "weights must be at least 0"),
        (lambda: MixedText({}, {}), "not all 0"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
