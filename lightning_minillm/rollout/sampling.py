"""How responses are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_minillm.checks import check_range


@dataclass(frozen=True)
class SamplingConfig:
    """Options of sampling; checked when made.

    Attributes:
        max_new_tokens: most tokens of a response, at least 1.
        min_new_tokens: eos cannot be sampled before this number of tokens; in [0, max_new_tokens].
        temperature: divides the logits of student and teacher; positive. 0 means greedy decoding of the student, for
            evaluation only.
        top_k: each model samples from its k most probable tokens; 0 for all.
        top_p: each model samples from its smallest set of tokens with at least this mass; in (0, 1].
        no_repeat_ngram_size: size of the n-grams that must not repeat: a token that would complete one which prompt or
            response already contain is not sampled; 0 allows repetition. The paper's test-time generation has 6.
        teacher_mix_alpha: alpha in [0, 1]; tokens come from (1 - alpha) student + alpha teacher (paper, eq. 3).
        teacher_reward_temperature: temperature of the teacher in the reward. The official code uses 1 whatever the
            sampling temperature; ``None`` means the sampling temperature.
        eos_token_ids: tokens or ids that end a response, besides those that tokenizer and models name themselves.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    teacher_mix_alpha: float = 0.2
    teacher_reward_temperature: float | None = 1.0
    eos_token_ids: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids or ()))
        longest, reward_temperature = self.max_new_tokens, self.teacher_reward_temperature
        is_greedy = self.temperature == 0 and self.teacher_mix_alpha == 0
        for name, is_inside, allowed in (
            ("max_new_tokens", longest >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= longest, f"in [0, {longest}]"),
            ("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "at least 1, or 0 to allow repetition"),
            ("teacher_mix_alpha", 0 <= self.teacher_mix_alpha <= 1, "in [0, 1]"),
            ("temperature", self.temperature > 0 or is_greedy, "positive (0, greedy, only with teacher_mix_alpha=0)"),
            ("teacher_reward_temperature", reward_temperature is None or reward_temperature > 0, "positive or null"),
        ):
            check_range(is_inside, name, allowed, getattr(self, name))
