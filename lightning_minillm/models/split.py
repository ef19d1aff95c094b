"""A causal language model in two steps: hidden states, then their projection on the vocabulary.

Logits of prompts are never needed, and logits are the largest tensor of a small model. So the package computes hidden
states and projects only those it uses.

Legend: B rows, L tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_minillm import _reach
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.grouping import left_aligned, length_groups
from lightning_minillm.functional.logprobs import TokenStates, select_targets
from lightning_minillm.functional.masking import position_ids
from lightning_minillm.models.checks import check_positions

CacheKind = Literal["ours", "stock", "none"]
_UNSHARED = (
    "which only one of student and teacher knows: leave these rows out, or use a student and a teacher with one"
    " tokenizer"
)
_CACHE_NAMES = ("past_key_values", "cache_params")  # the second is Mamba's
_FEWEST_TOKENS = {"cpu": 512}  # per pass; fewer take hardly less time
_FEWEST_TOKENS_ELSEWHERE = 8192
_MOST_TOKENS = {"cpu": 512}  # per pass; the widest activations of more do not fit the processor's cache


def pass_groups(lengths: Sequence[int], device: torch.device) -> list[slice]:
    """Group rows into forward passes whose size suits the device.

    Args:
        lengths: tokens of each row, in descending order.
        device: the device of the passes.
    """
    fewest = _FEWEST_TOKENS.get(device.type, _FEWEST_TOKENS_ELSEWHERE)
    return length_groups(lengths, fewest, _MOST_TOKENS.get(device.type))


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Switch dropout off, and restore the modes of the models."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


class SplitCausalLM:
    """Computes hidden states and logits of a transformers causal LM; the logits equal the model's own.

    Soft-caps and logit scales of the model are applied. A model whose head cannot be told from its body works too, with
    a warning: its "hidden states" are then its own logits.

    Args:
        model: any ``AutoModelForCausalLM``; its parameters are registered elsewhere.
        vocabulary: number of leading ids to compute logits for; ``None`` for all.
        excluded_ids: ids that get no probability, and that texts must not contain.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None = None, excluded_ids: Sequence[int] = ()) -> None:
        self.model = model
        self.excluded_ids = tuple(excluded_ids)
        self._masked = torch.tensor(
            [i for i in excluded_ids if vocabulary is None or i < vocabulary], dtype=torch.int64
        )
        self.vocabulary = vocabulary
        self.may_be_static = True
        """``False`` once a decode step of fixed shapes has failed; set by the sampler."""
        self.cache_kind: CacheKind | None = None
        """The cache that gives the states of full passes: ours, transformers' or none; set by the sampler by trying."""
        self._training_hidden: Callable[..., tuple[Tensor, Any]] = self.hidden
        self._body = model.base_model if model.base_model is not model else None
        self._head = model.get_output_embeddings()
        self._config = model.config.get_text_config()
        if getattr(self._config, "rescale_every", 0) and model.dtype != torch.float16:
            self._config.rescale_every = 0  # in eval mode RWKV divides its weights, and an export would contain them so
        parameters = inspect.signature((self._body or model).forward).parameters
        self.takes_positions = "position_ids" in parameters
        """Whether the model takes positions as an input."""
        self.cache_name = next((name for name in _CACHE_NAMES if name in parameters), None)
        """The model's name for its cache; ``None`` if it takes none."""
        takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        self._takes_use_cache = takes_more or "use_cache" in parameters
        self.is_split = True
        obstacle = self._obstacle()
        if obstacle is not None:
            self.is_split = False
            warnings.warn(
                f"the head of {type(model).__name__} cannot be told from its body ({obstacle}): its full logits are"
                " computed for every token, which takes more memory",
                stacklevel=2,
            )

    @property
    def hidden_size(self) -> int:
        """Size of the last dimension of :meth:`hidden`: H, or V for a model whose head cannot be told from its body."""
        weight: Tensor = self._head.weight
        return weight.shape[1] if self.is_split else weight.shape[0]

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, positions: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """Run the body.

        Args:
            input_ids: ``[B, L]`` int64.
            attention_mask: ``[B, S]`` bool over the cached tokens and ``input_ids``; ``None`` if all tokens count, or
                if padding is only on the right, where no token that counts can see it. A mask ``[B, 1, L, S]`` is
                passed on unchanged: it tells which tokens each token may see.
            positions: ``[B, L]`` int64; ``None`` counts them from a ``[B, S]`` mask, so that left padding does not
                matter. Without either, the model uses its own.
            cache: a transformers cache to read and extend; ``None`` for none.

        Returns:
            ``[B, L, H]`` hidden states after the last norm, and the cache.

        Raises:
            RuntimeError: a cache was given and the model takes or returns none. With gradient checkpointing, models
                return none in train mode.
        """
        if positions is None and attention_mask is not None:
            positions = position_ids(attention_mask)[:, -input_ids.shape[1] :]
        kwargs: dict[str, Any] = {"position_ids": positions} if self.takes_positions else {}
        if self._takes_use_cache:
            kwargs["use_cache"] = cache is not None
        if cache is not None:
            if self.cache_name is None:
                raise RuntimeError(f"{type(self.model).__name__} takes no cache")
            kwargs[self.cache_name] = cache
        runner = self._body if self.is_split else self.model
        assert runner is not None
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = attention_mask.long()
        output = runner(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        returned = None if cache is None else output.get(self.cache_name)
        if cache is not None and returned is None:
            raise RuntimeError(
                f"{type(self.model).__name__} returned no key-value cache (with gradient checkpointing, models do so in"
                " train mode)"
            )
        return (output.last_hidden_state if self.is_split else output.logits), returned

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``[..., H]`` to the model's logits ``[..., V]``."""
        logits = self._logits(hidden)[..., : self.vocabulary]
        if len(self._masked) == 0:
            return logits
        self._masked = self._masked.to(logits.device)
        # low enough for a probability of exactly 0, and finite, so that divergences multiply it with 0
        return logits.index_fill(-1, self._masked, max(-1e30, torch.finfo(logits.dtype).min / 2))

    def knows(self, token_id: int) -> bool:
        """Return whether the model gives an id a probability."""
        size = min(self._head.weight.shape[0], self.vocabulary or token_id + 1)
        return 0 <= token_id < size and token_id not in self.excluded_ids

    def check_text(self, input_ids: Tensor, mask: Tensor, rows: Tensor) -> None:
        """Check that a text has no excluded ids; without any, this costs nothing.

        Args:
            input_ids: ``[B, L]`` int64.
            mask: ``[B, L]`` bool, the tokens that count.
            rows: ``[B]`` int64, numbers of the rows, for the message.

        Raises:
            ValueError: it has; the message names ids and rows.
        """
        if not self.excluded_ids:
            return
        excluded = torch.isin(input_ids, torch.tensor(self.excluded_ids, device=input_ids.device)) & mask.bool()
        if bool(excluded.any()):
            raise ValueError(
                f"the rows {rows[excluded.any(-1)].tolist()} of the data contain the token ids"
                f" {input_ids[excluded].unique().tolist()}, {_UNSHARED}"
            )

    def check_rows(self, rows_with: Callable[[Sequence[int]], Mapping[str, Sequence[int]]]) -> None:
        """Check, before any work, that data have no excluded ids; without any, this costs nothing.

        Args:
            rows_with: returns the rows of each split that have any of some ids.

        Raises:
            ValueError: they have.
        """
        found = rows_with(self.excluded_ids) if self.excluded_ids else {}
        if found:
            counts = ", ".join(f"{len(rows)} rows of {name} (the first is {rows[0]})" for name, rows in found.items())
            raise ValueError(f"the data contain token ids in {counts}, {_UNSHARED}")

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
        """Compile the body for :meth:`token_states`, for any batch shape; sampling is not compiled.

        Args:
            backend: backend of ``torch.compile``, such as ``"inductor"``.

        Raises:
            ValueError: unknown backend.
        """
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"unknown torch.compile backend {backend!r}: use one of {', '.join(known)}")
        self._training_hidden = torch.compile(self.hidden, backend=backend, dynamic=True)

    def token_states(
        self, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor
    ) -> tuple[TokenStates, Tensor]:
        """Return the states that predict the target tokens, and the target ids ``[N]``.

        Args:
            input_ids: ``[B, L]`` int64, padded on either side.
            attention_mask: ``[B, L]`` bool. Rows are aligned to the left and grouped by length before the passes.
            target_mask: ``[B, L]`` bool, not shifted: ``True`` at a token that is predicted from the tokens before it.
        """
        counted = attention_mask.bool() | target_mask
        order = left_aligned(counted)
        ids, targets = input_ids.gather(1, order), target_mask.gather(1, order)
        lengths = counted.sum(-1)
        by_length = lengths.argsort(descending=True, stable=True)
        groups: list[slice] = []
        if ids.device.type == "cpu" and not is_sharded(self.model):
            # ranks that gather shards must make the same number of passes
            descending = lengths[by_length].tolist()
            groups = pass_groups(descending, ids.device)
        if len(groups) < 2:
            return self.states(self._selected(ids, targets)), ids[targets]
        numbers = targets.flatten().cumsum(0).view_as(targets) - 1
        selected, places = [], []
        for group in groups:
            rows, width = by_length[group], descending[group.start]
            selected.append(self._selected(ids[rows, :width], targets[rows, :width]))
            places.append(numbers[rows][targets[rows]])
        return self.states(torch.cat(selected)[torch.cat(places).argsort()]), ids[targets]

    def _selected(self, input_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Run the body over rows that are padded on the right, where no token that counts can see padding."""
        check_positions(self.model.name_or_path or type(self.model).__name__, self._config, input_ids.shape[1])
        hidden, _ = self._training_hidden(input_ids, None)
        return select_targets(hidden, input_ids, target_mask)[0]

    def states(self, hidden: Tensor) -> TokenStates:
        """Return hidden states ``[N, H]`` of N target tokens together with this model's projection."""
        parameters: tuple[Tensor, ...] | None = ()
        if self.is_split:  # sharded weights are left out, since only the model may gather them
            parameters = None if is_sharded(self._head) else tuple(self._head.parameters())
        rows: int = self._head.weight.shape[0]
        return TokenStates(hidden, self.project, parameters, min(rows, self.vocabulary or rows))

    @torch.no_grad()
    def _obstacle(self) -> str | None:
        """Return why body and head do not give the model's own logits on a short input; ``None`` if they do."""
        if self._head is None or self._body is None:
            return "transformers names no head or no body"
        parameter = next(self.model.parameters())
        if parameter.is_meta:
            return None
        ids = torch.arange(1, 5, device=parameter.device)[None] % self._head.weight.shape[0]
        mask = torch.ones_like(ids, dtype=torch.bool)
        try:
            with eval_mode(self.model):
                expected = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.float()
                given = self._logits(self.hidden(ids, mask)[0]).float()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            if _reach.is_out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"
        tolerance = 1e-3 if parameter.dtype == torch.float32 else 5e-2
        largest = expected.abs().max().clamp_min(1e-6)
        agree = expected.shape == given.shape and bool((expected - given).abs().max() <= tolerance * largest)
        return None if agree else "together they do not give its logits"
