"""Sampling responses from the mixture of student and teacher, in lockstep.

Both models advance together, each with its key-value cache, and only the last position is projected. Every sampled
token's log-probabilities under student, teacher and mixture come from these same passes: no scoring pass follows.

Legend: B rows, A rows still running, P prompt tokens, T response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.functional.sampling import (
    filter_logprobs,
    mixture_logprobs,
    repeated_ngram_mask,
    sample_with_noise,
)
from lightning_minillm.models.split import SplitCausalLM, eval_mode
from lightning_minillm.rollout.batching import select_prompts
from lightning_minillm.rollout.cache import rows_to_keep
from lightning_minillm.rollout.decoder import Decoder, make_decoder
from lightning_minillm.rollout.full_pass import FullPassDecoder
from lightning_minillm.rollout.options import OWN_PROMPTS
from lightning_minillm.rollout.sampling import SamplingConfig
from lightning_minillm.types import PromptBatch, RolloutBatch

AnyDecoder = Decoder | FullPassDecoder
_COMPACT_BELOW = 0.95
_COMPACT_STATIC_BELOW = 0.5  # where a different number of rows costs a capture


def token_noise(seed: int, phase: int, indices: Tensor, width: int) -> Tensor:
    """Draw the uniform numbers that sampling will use, one per token, ahead of time.

    Args:
        seed: of the run.
        phase: number of the rollout phase (or of the evaluation).
        indices: ``[B]`` rows of the prompts; a prompt has the same noise in any batch and on any rank.
        width: tokens per row; a shorter width gives the first numbers of a longer one.

    Returns:
        ``[B, width]`` float64 in [0, 1), on the CPU.
    """
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, phase, index)))).random(width)
        for index in indices.tolist()
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width, dtype=torch.float64)


class MixtureSampler:
    """Samples responses from (1 - alpha) student + alpha teacher.

    Args:
        student: the student, split.
        teacher: the teacher, split; ``None`` samples from the student alone (``teacher_mix_alpha`` must be 0).
        eos_token_ids: ids that end a response.
        pad_token_id: fills what follows; may equal an eos id.
        config: sampling options.
        keep_teacher_hidden: also return the teacher's last hidden states on the response tokens.
        vocabulary: leading ids to sample from; the smaller of the two models' vocabularies when ``None``.
        finish_together: called after every token with whether all rows here are finished; returns whether to stop.
            For ranks that need each other in every pass; ``None``: a rank stops by itself.
        static_steps: decode in steps of fixed shapes, which a GPU replays as CUDA graphs; ``None``: on a GPU. For a
            model that cannot, sampling uses plain steps, with one warning.

    Raises:
        ValueError: a mixture without a teacher.
    """

    def __init__(
        self,
        student: SplitCausalLM,
        teacher: SplitCausalLM | None,
        *,
        eos_token_ids: int | Sequence[int],
        pad_token_id: int,
        config: SamplingConfig,
        keep_teacher_hidden: bool = False,
        vocabulary: int | None = None,
        finish_together: Callable[[bool], bool] | None = None,
        static_steps: bool | None = None,
    ) -> None:
        if teacher is None and config.teacher_mix_alpha > 0:
            raise ValueError(
                f"teacher_mix_alpha={config.teacher_mix_alpha} mixes in a teacher, but none was given;"
                " pass a teacher or set teacher_mix_alpha=0"
            )
        self.student = student
        self.teacher = teacher
        self.eos_token_ids = [eos_token_ids] if isinstance(eos_token_ids, int) else list(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.finish_together = finish_together or (lambda finished: finished)
        self.config = config
        self.static_steps = static_steps
        self.keep_teacher_hidden = keep_teacher_hidden and teacher is not None
        models = [m for m in (student, teacher) if m is not None]
        sizes = [m.model.get_output_embeddings().weight.shape[0] for m in models]
        sizes += [m.vocabulary for m in models if m.vocabulary is not None]
        self.vocabulary = min([*sizes, vocabulary] if vocabulary else sizes)

    @torch.no_grad()
    def sample(self, prompts: PromptBatch, *, seed: int, phase: int = 0) -> RolloutBatch:
        """Sample one response per prompt.

        Args:
            prompts: left-padded; every row has at least one token.
            seed: of the run.
            phase: number of the rollout phase.

        Returns:
            Responses with log-probabilities under student, teacher and mixture, trimmed to the longest response.
            Student and teacher log-probabilities are of the whole distributions at the sampling temperature; the
            mixture's are of what was sampled from, after top-k, top-p, min_new_tokens and no_repeat_ngram_size.

        Raises:
            ValueError: an empty prompt, or one that leaves a model too few positions for the response; or a teacher
                that is shown prompts of its own, which cannot advance with the student.
            FloatingPointError: a model whose weights have diverged, with the rows.
        """
        if not bool(prompts.attention_mask.any(-1).all()):
            raise ValueError("a prompt is empty: there is nothing to condition the response on")
        if prompts.teacher is not None and self.teacher is not None:
            raise ValueError(OWN_PROMPTS)
        self.student.check_text(prompts.input_ids, prompts.attention_mask, prompts.indices)
        self.check_positions(int(prompts.attention_mask.sum(-1).max()))
        with eval_mode(*(split.model for split in (self.student, self.teacher) if split is not None)):
            record = self._decode(prompts, token_noise(seed, phase, prompts.indices, self.config.max_new_tokens))
        _check_numbers(record, prompts.indices)
        lengths = record.pop("lengths")
        width = int(lengths.max())
        rollouts = RolloutBatch.from_columns(
            {
                "prompt_ids": prompts.input_ids,
                "prompt_mask": prompts.attention_mask.bool(),
                "response_mask": lengths_to_mask(lengths, width),
                "indices": prompts.indices,
                **{name: column[:, :width] for name, column in record.items()},
            }
        )
        return rollouts.for_prompts(prompts)

    def check_positions(self, prompt_length: int) -> None:
        """Check that prompts of that many tokens and their responses fit into the models' positions.

        Raises:
            ValueError: they do not, which would be an index error in the middle of sampling.
        """
        needed = prompt_length + self.config.max_new_tokens - 1  # the last token is not fed
        for name, split in (("student", self.student), ("teacher", self.teacher)):
            if split is None:
                continue
            positions = getattr(split.model.config.get_text_config(), "max_position_embeddings", None)
            if positions is not None and needed > positions:
                raise ValueError(
                    f"a prompt of {prompt_length} tokens and a response of max_new_tokens={self.config.max_new_tokens}"
                    f" need {needed} positions, and the {name} has {positions}: lower max_new_tokens or"
                    " max_prompt_length"
                )

    def _decode(self, prompts: PromptBatch, noise: Tensor) -> dict[str, Tensor]:
        """Return the columns of the responses, filled as tokens are drawn; rows keep their place in the batch."""
        device = prompts.input_ids.device
        rows = prompts.attention_mask.sum(-1).argsort(stable=True, descending=True)  # like lengths are read together
        ordered = select_prompts(prompts, rows)
        lengths = ordered.attention_mask.sum(-1).tolist()
        student, teacher = (
            None
            if model is None
            else make_decoder(model, ordered, lengths, self.config.max_new_tokens, self.static_steps)
            for model in (self.student, self.teacher)
        )
        assert student is not None
        record = self._empty_record(prompts, teacher)
        noise = noise.to(device, torch.float64 if device.type == "cpu" else torch.float32)
        eos = torch.tensor(self.eos_token_ids, device=device)
        running = torch.ones(len(noise), dtype=torch.bool, device=device)
        for t in range(self.config.max_new_tokens):
            banned = self._banned(prompts, record["response_ids"], rows, t)
            tokens = self._draw(student, teacher, noise[rows, t], t, record, rows, running, banned)
            record["lengths"][rows[running]] = t + 1
            running = running & ~torch.isin(tokens, eos)
            count = int(running.sum())
            if t + 1 == self.config.max_new_tokens or self.finish_together(count == 0):
                break
            decoders = [student] if teacher is None else [student, teacher]
            static = any(decoder.is_static for decoder in decoders)
            if 0 < count <= (_COMPACT_STATIC_BELOW if static else _COMPACT_BELOW) * len(rows):
                kept = rows_to_keep(running)
                rows, tokens, running = rows[kept], tokens[kept], running[kept]
                for decoder in decoders:
                    decoder.keep(kept)
            student.advance(tokens)
            if teacher is not None:
                teacher.advance(tokens)
        return record

    def _draw(
        self,
        student: AnyDecoder,
        teacher: AnyDecoder | None,
        noise: Tensor,
        t: int,
        record: dict[str, Tensor],
        rows: Tensor,
        running: Tensor,
        banned: Tensor | None,
    ) -> Tensor:
        """Draw token t of every row and record it; finished rows record nothing."""
        config = self.config
        temperature = config.temperature or 1.0
        log_q = _log_softmax(student.logits(self.vocabulary), temperature)
        log_p = None
        values = {"student_logprobs": log_q}
        if teacher is not None:
            logits = teacher.logits(self.vocabulary)
            log_p = _log_softmax(logits, temperature)
            reward_temperature = config.teacher_reward_temperature or temperature
            same = reward_temperature == temperature
            values |= {
                "teacher_logprobs": log_p,
                "reward_logprobs": log_p if same else _log_softmax(logits, reward_temperature),
            }
        log_mu = self._mixture(log_q, log_p, banned)
        values["mixture_logprobs"] = log_mu
        tokens = log_mu.argmax(-1) if config.temperature == 0 else sample_with_noise(log_mu, noise)

        written, drawn = rows[running], tokens[running]
        record["response_ids"][written, t] = drawn
        for name, logprobs in values.items():
            record[name][written, t] = logprobs[running].gather(-1, drawn[:, None]).squeeze(-1)
        if teacher is not None and self.keep_teacher_hidden:
            record["teacher_hidden"][written, t] = teacher.state[running]
        return tokens

    def _banned(self, prompts: PromptBatch, response_ids: Tensor, rows: Tensor, t: int) -> Tensor | None:
        """Return which tokens must not be drawn at place t: ``[A, V]`` bool; ``None`` if all may be."""
        config, banned = self.config, None
        if config.no_repeat_ngram_size > 0:
            prompt_mask = prompts.attention_mask[rows].bool()
            ids = torch.cat([prompts.input_ids[rows], response_ids[rows, :t]], dim=1)
            mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(rows), t)], dim=1)
            banned = repeated_ngram_mask(ids, mask, config.no_repeat_ngram_size, self.vocabulary)
        if t < config.min_new_tokens:
            no_end = torch.zeros(len(rows), self.vocabulary, dtype=torch.bool, device=rows.device)
            no_end[:, self.eos_token_ids] = True
            both = no_end if banned is None else banned | no_end
            banned = torch.where(both.all(-1, keepdim=True), no_end, both)  # at least one token must remain
        return banned

    def _mixture(self, log_q: Tensor, log_p: Tensor | None, banned: Tensor | None) -> Tensor:
        """The log-probabilities to sample from: each model filtered, then mixed."""
        if banned is not None:
            log_q = log_q.masked_fill(banned, -torch.inf).log_softmax(-1)
            log_p = None if log_p is None else log_p.masked_fill(banned, -torch.inf).log_softmax(-1)
        log_q = filter_logprobs(log_q, self.config.top_k, self.config.top_p)
        if log_p is None or self.config.teacher_mix_alpha == 0:
            return log_q
        log_p = filter_logprobs(log_p, self.config.top_k, self.config.top_p)
        return mixture_logprobs(log_q, log_p, self.config.teacher_mix_alpha)

    def _empty_record(self, prompts: PromptBatch, teacher: AnyDecoder | None) -> dict[str, Tensor]:
        shape = (len(prompts.indices), self.config.max_new_tokens)
        ids = torch.full(shape, self.pad_token_id, dtype=torch.int64, device=prompts.input_ids.device)
        names = ["student_logprobs", "mixture_logprobs"]
        if teacher is not None:
            names += ["teacher_logprobs", "reward_logprobs"]
        record = {name: torch.zeros_like(ids, dtype=torch.float32) for name in names}
        if teacher is not None and self.keep_teacher_hidden:
            record["teacher_hidden"] = teacher.state.new_zeros(*shape, teacher.state.shape[-1])
        return {"response_ids": ids, "lengths": torch.zeros_like(ids[:, 0]), **record}


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _check_numbers(record: dict[str, Tensor], indices: Tensor) -> None:
    """Stop if a model's log-probabilities are NaN: tokens drawn from them mean nothing."""
    for name in ("student", "teacher"):
        if f"{name}_logprobs" not in record:
            continue
        invalid = record[f"{name}_logprobs"].isnan().any(-1)
        if bool(invalid.any()):
            raise FloatingPointError(
                f"the {name}'s log-probabilities are not a number on the rows {indices[invalid].tolist()} of the data:"
                " its weights have diverged or overflow. Go back to an earlier checkpoint; try a smaller learning rate"
                " or float32"
            )
