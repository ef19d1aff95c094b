"""A causal language model as two steps: hidden states, then projection on the vocabulary.

Prompt logits are never needed and the projection is the largest tensor of a small model, so the package asks every
model for hidden states and projects only what it uses.

Legend: B rows, L tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_minillm import _reach
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.grouping import left_aligned, length_groups
from lightning_minillm.functional.logprobs import TokenStates, select_targets
from lightning_minillm.functional.masking import position_ids

_FEWEST_TOKENS = {"cpu": 512}  # of a pass: fewer take hardly less time
_FEWEST_TOKENS_ELSEWHERE = 8192
_MOST_TOKENS = {"cpu": 512}  # of a pass: the widest states of more leave the cache


def pass_groups(lengths: Sequence[int], device: torch.device) -> list[slice]:
    """Split rows, the longest first, into forward passes that suit the device.

    Args:
        lengths: tokens of each row, falling.
        device: where they are read.
    """
    fewest = _FEWEST_TOKENS.get(device.type, _FEWEST_TOKENS_ELSEWHERE)
    return length_groups(lengths, fewest, _MOST_TOKENS.get(device.type))


class SplitCausalLM:
    """Gives hidden states and logits of a transformers causal LM, equal to the model's own logits.

    Soft-caps and logit scales are the model's. A model whose head cannot be split keeps working: its "hidden states"
    are then its own logits, with a warning.

    Args:
        model: any ``AutoModelForCausalLM``. Held, not owned: parameters are registered elsewhere.
        vocabulary: leading ids to give logits for; ``None`` for all.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None = None) -> None:
        self.model = model
        self.vocabulary: int | None = None
        self.may_be_static = True
        """Whether decode steps of fixed shapes have not failed yet; the sampler remembers it here."""
        self._training_hidden: Callable[..., tuple[Tensor, Any]] = self.hidden
        self._body = model.base_model if model.base_model is not model else None
        self._head = model.get_output_embeddings()
        self._config = model.config.get_text_config()
        target = self._body if self._body is not None else model
        self._takes_positions = "position_ids" in inspect.signature(target.forward).parameters
        self.is_split = True
        obstacle = self._obstacle()
        if obstacle is not None:
            self.is_split = False
            warnings.warn(
                f"the head of {type(model).__name__} cannot be told from its body ({obstacle}): its full logits are"
                " computed for every token, which takes more memory",
                stacklevel=2,
            )
        self.vocabulary = vocabulary

    @property
    def takes_positions(self) -> bool:
        """Whether positions are an input of the model."""
        return self._takes_positions

    @property
    def hidden_size(self) -> int:
        """Columns of what :meth:`hidden` returns: H, or V for a model that cannot be split."""
        weight: Tensor = self._head.weight
        return weight.shape[1] if self.is_split else weight.shape[0]

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, positions: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """Run the body.

        Args:
            input_ids: ``[B, L]`` int64.
            attention_mask: ``[B, S]`` bool, over the cached tokens and ``input_ids``; ``None`` where all count, or
                where padding is on the right alone, so that no token that counts can see it. ``[B, 1, L, S]`` is
                taken as it is: which cached token each may see.
            positions: ``[B, L]`` int64; counted from the mask when ``None``, so that left padding does not matter.
                Without either, they are the model's own.
            cache: a transformers cache to read and extend; ``None`` for none.

        Returns:
            ``[B, L, H]`` hidden states after the last norm, and the cache.

        Raises:
            RuntimeError: a cache was given and none came back (gradient checkpointing in train mode switches it off).
        """
        if positions is None and attention_mask is not None:
            positions = position_ids(attention_mask)[:, -input_ids.shape[1] :]
        kwargs: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        runner = self._body if self.is_split else self.model
        assert runner is not None
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = attention_mask.long()
        output = runner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            return_dict=True,
            **kwargs,
        )
        if cache is not None and output.past_key_values is None:
            raise RuntimeError("the model returned no key-value cache; sample in eval mode, without checkpointing")
        return (output.last_hidden_state if self.is_split else output.logits), output.past_key_values

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``[..., H]`` to the model's logits ``[..., V]``."""
        return self._logits(hidden)[..., : self.vocabulary]

    def _logits(self, hidden: Tensor) -> Tensor:
        if not self.is_split:
            return hidden
        logits: Tensor = self._head(hidden)
        if getattr(self._config, "logit_scale", None) is not None:  # Cohere
            logits = logits * self._config.logit_scale
        if getattr(self._config, "logits_scaling", None) is not None:  # Granite
            logits = logits / self._config.logits_scaling
        if getattr(self._config, "final_logit_softcapping", None) is not None:  # Gemma
            cap = self._config.final_logit_softcapping
            logits = torch.tanh(logits / cap) * cap
        return logits

    def compile(self, backend: str) -> None:
        """Run the body of :meth:`token_states` through ``torch.compile``, for any batch shape; not that of sampling.

        Raises:
            ValueError: an unknown backend.
        """
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"unknown torch.compile backend {backend!r}; there are {', '.join(known)}")
        self._training_hidden = torch.compile(self.hidden, backend=backend, dynamic=True)

    def token_states(
        self, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor
    ) -> tuple[TokenStates, Tensor]:
        """Return the states that predict the target tokens, and the target ids ``[N]``.

        Args:
            input_ids: ``[B, L]`` int64, padded on either side.
            attention_mask: ``[B, L]`` bool. Rows are moved to the left and grouped by length before they are read.
            target_mask: ``[B, L]`` bool, unshifted (see :class:`~lightning_minillm.types.TokenBatch`).
        """
        counted = attention_mask.bool() | target_mask
        order = left_aligned(counted)
        ids, targets = input_ids.gather(1, order), target_mask.gather(1, order)
        lengths = counted.sum(-1)
        if ids.device.type != "cpu" or is_sharded(self.model):
            # ranks that gather shards must make the same number of passes
            return self.states(self._selected(ids, targets)), ids[targets]
        by_length = lengths.argsort(descending=True, stable=True)
        falling = lengths[by_length].tolist()
        groups = pass_groups(falling, ids.device)
        if len(groups) == 1:
            return self.states(self._selected(ids, targets)), ids[targets]
        numbers = targets.flatten().cumsum(0).view_as(targets) - 1
        selected, places = [], []
        for group in groups:
            rows, width = by_length[group], falling[group.start]
            selected.append(self._selected(ids[rows, :width], targets[rows, :width]))
            places.append(numbers[rows][targets[rows]])
        return self.states(torch.cat(selected)[torch.cat(places).argsort()]), ids[targets]

    def _selected(self, input_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Run the body over rows that are padded on the right: no token that counts sees what is behind it."""
        hidden, _ = self._training_hidden(input_ids, None)
        return select_targets(hidden, input_ids, target_mask)[0]

    def states(self, hidden: Tensor) -> TokenStates:
        """Return hidden states ``[N, H]`` of N target tokens together with this model's projection."""
        return TokenStates(hidden, self.project, self._head_parameters(), self._num_logits())

    def _head_parameters(self) -> tuple[Tensor, ...] | None:
        """The weights behind :meth:`project`; unknown where they are sharded, since only the model may gather them."""
        if not self.is_split:
            return ()
        return None if is_sharded(self._head) else tuple(self._head.parameters())

    def _num_logits(self) -> int:
        rows: int = self._head.weight.shape[0]
        return rows if self.vocabulary is None else min(rows, self.vocabulary)

    @torch.no_grad()
    def _obstacle(self) -> str | None:
        """Return why body and head do not give the model's own logits on a short input; ``None`` if they do."""
        if self._head is None or self._body is None:
            return "transformers does not know them apart"
        parameter = next(self.model.parameters())
        if parameter.is_meta:
            return None
        was_training = self.model.training
        self.model.eval()
        ids = torch.arange(1, 5, device=parameter.device)[None] % self._head.weight.shape[0]
        mask = torch.ones_like(ids, dtype=torch.bool)
        try:
            expected = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.float()
            hidden, _ = self.hidden(ids, mask)
            given = self.project(hidden).float()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            if _reach.is_out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"
        finally:
            self.model.train(was_training)
        tolerance = 1e-3 if parameter.dtype == torch.float32 else 5e-2
        largest = expected.abs().max().clamp_min(1e-6)
        agree = expected.shape == given.shape and bool((expected - given).abs().max() <= tolerance * largest)
        return None if agree else "together they do not give its logits"
