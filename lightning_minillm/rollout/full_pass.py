"""One model while sampling without a cache: every step reads prompt and response so far.

Slow, and right for any causal model: rows are padded on the right, where no token that counts can see it.

Legend: A rows still running, L tokens, H hidden size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from lightning_minillm.functional.grouping import left_aligned
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.types import PromptBatch


class FullPassDecoder:
    """What :class:`Decoder` is for models with a cache.

    Args:
        model: the model, split.
        prompts: left-padded.
    """

    is_static = False

    def __init__(self, model: SplitCausalLM, prompts: PromptBatch) -> None:
        self._model = model
        mask = prompts.attention_mask.bool()
        self._ids = prompts.input_ids.gather(1, left_aligned(mask))
        self._lengths = mask.sum(-1, keepdim=True)
        self.state = self._read()

    def _read(self) -> Tensor:
        hidden, _ = self._model.hidden(self._ids, None)
        return hidden.take_along_dim(self._lengths[..., None] - 1, dim=1).squeeze(1)

    def logits(self, vocabulary: int) -> Tensor:
        """Project the current state: ``[A, vocabulary]`` float32."""
        return self._model.project(self.state)[:, :vocabulary].float()

    def advance(self, token_ids: Tensor) -> None:
        """Feed the sampled tokens ``[A]``."""
        self._ids = pad(self._ids, (0, 1)).scatter(1, self._lengths, token_ids[:, None])
        self._lengths = self._lengths + 1
        self.state = self._read()

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` ``[A']``."""
        self._ids, self._lengths, self.state = self._ids[rows], self._lengths[rows], self.state[rows]
