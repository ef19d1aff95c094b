"""A student and its frozen teacher: what both share, where they are, and their states on given text.

Legend: B rows, L tokens, N target tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.distributed.placement import ModelPlacement, OneCopy
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.models.activations import fuse_activations
from lightning_minillm.models.checks import check_positions
from lightning_minillm.models.loading import is_quantized, shared_vocabulary, stays_on_its_device
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.tokens import TokenDifferences, check_tokenizers, end_ids
from lightning_minillm.types import TokenBatch

ModelFactory = PreTrainedModel | Callable[[], PreTrainedModel]
"""A model, or a function that loads it when it is needed."""


@dataclass(frozen=True)
class ModelWithTokenizer:
    """A teacher together with a tokenizer that is not quite the student's."""

    model: ModelFactory
    """The model, or a function that loads it."""
    tokenizer: PreTrainedTokenizerBase
    """The model's own; see :func:`~lightning_minillm.tokens.check_tokenizers` for what may differ."""

    def __call__(self) -> PreTrainedModel:
        """Load the model."""
        return self.model if isinstance(self.model, PreTrainedModel) else self.model()


class ModelPair:
    """A student and, if there is one, its frozen teacher.

    The pair is no ``nn.Module``: a Lightning module registers the student alone, so that the teacher stays out of the
    optimiser, of checkpoints, of DDP, and of ``.train()``.

    Args:
        student: a transformers causal LM, or a function that loads one; it is called here.
        tokenizer: of both; has an eos and a pad token.
        teacher: a model or a function, as for ``student``; frozen here. ``None`` for none. If its tokenizer has another
            eos or more added tokens, a :class:`ModelWithTokenizer`.
        placement: where the models are; shards them if it spreads models over processes.
        gradient_checkpointing: compute the student's layers again in the backward pass instead of keeping their
            activations: less memory, about a third more time.
        activation_offload: keep the activations of the student's layers in CPU memory until the backward pass.
        compile_backend: backend of ``torch.compile`` for the student's training passes, such as ``"inductor"``;
            ``None`` runs them uncompiled.
        teacher_offload: keep the teacher's shards on the CPU, where it is sharded.

    Attributes:
        student: the student.
        teacher: the teacher, or ``None``.
        tokenizer: of both.
        student_split: the student as body and head.
        teacher_split: the teacher as body and head, or ``None``.
        vocabulary: number of leading ids that both models have logits for; ``None`` without a teacher.

    Raises:
        ValueError: a tokenizer without eos or pad token, tokenizers that cannot be compared, or an unknown compile
            backend.
    """

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        teacher: ModelFactory | None = None,
        *,
        placement: ModelPlacement | None = None,
        gradient_checkpointing: bool = False,
        activation_offload: bool = False,
        compile_backend: str | None = None,
        teacher_offload: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no eos or no pad token: set tokenizer.eos_token and tokenizer.pad_token"
            )
        self.tokenizer = tokenizer
        self.activation_offload = activation_offload
        self.teacher_offload = teacher_offload
        self.student = _load(student)
        if gradient_checkpointing:
            _checkpoint_layers(self.student)
        self.teacher: PreTrainedModel | None = None if teacher is None else _load(teacher).requires_grad_(False).eval()
        # Head and body are told apart before anything is sharded. Both models are cut to the leading ids that they
        # share, everywhere: in sampling, losses and measurements, so that the numbers fit together.
        own_tokenizer = teacher.tokenizer if isinstance(teacher, ModelWithTokenizer) else tokenizer
        differences = check_tokenizers(tokenizer, own_tokenizer) if own_tokenizer is not tokenizer else None
        self.vocabulary, excluded = self._shared_ids(differences)
        self.student_split = SplitCausalLM(self.student, self.vocabulary, excluded)
        self.teacher_split = None if self.teacher is None else SplitCausalLM(self.teacher, self.vocabulary, excluded)
        self._eos_token_ids = end_ids(tokenizer, filter(None, (self.student, self.teacher))) + end_ids(own_tokenizer)
        if placement is None or placement.data_rank == 0:
            self._warn_about_vocabulary(differences)
        if compile_backend is not None:
            self.student_split.compile(compile_backend)
        self.place(placement or OneCopy())

    @property
    def models(self) -> list[nn.Module]:
        """The student and, if there is one, the teacher."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def end_ids(self, named: Iterable[int | str] = ()) -> tuple[int, ...]:
        """Return the ids that end a response of either model.

        Args:
            named: further ends, as ids or tokens.

        Raises:
            ValueError: there is no such token, or no end that both models know.
        """
        found = dict.fromkeys((*self._eos_token_ids, *end_ids(self.tokenizer, named=named)))
        known = tuple(index for index in found if self.student_split.knows(index))
        if not known:
            raise ValueError(
                f"none of the ids {list(found)} that end a response is known to student and teacher: name one in"
                " sampling.eos_token_ids, or set tokenizer.eos_token"
            )
        return known

    def _shared_ids(self, differences: TokenDifferences | None) -> tuple[int | None, tuple[int, ...]]:
        """Return the number of leading ids to compare, and the ids among them that are no token of both models."""
        if self.teacher is None:
            return None, ()
        size = shared_vocabulary(self.student, self.teacher)
        if differences is None or not differences.ids:
            return size, ()
        shared = set(self.tokenizer.get_vocab().values()) - set(differences.ids)
        size = min(size, max(shared) + 1)
        # those of the student beyond them have no logits to exclude, and texts may contain them
        return size, tuple(sorted({*range(size), *differences.student_only.values()} - shared))

    def _warn_about_vocabulary(self, differences: TokenDifferences | None) -> None:
        if self.teacher is None:
            return
        if differences is not None and str(differences):
            warnings.warn(f"the tokenizers of student and teacher differ: {differences}", stacklevel=3)
        own, theirs = (model.get_output_embeddings().weight.shape[0] for model in (self.student, self.teacher))
        if own != theirs:
            warnings.warn(
                f"the student has logits for {own} ids and the teacher for {theirs}; they are compared on the"
                f" {self.vocabulary} that both have (the rest pads the embedding)",
                stacklevel=3,
            )

    def check_positions(self, length: int) -> None:
        """Check that both models have a position for every place of a sequence of that many tokens.

        Raises:
            ValueError: a table of positions is too short.
        """
        for name, model in (("the student", self.student), ("the teacher", self.teacher)):
            if model is not None:
                check_positions(model.name_or_path or name, model.config, length)

    @property
    def device(self) -> torch.device:
        """Where inputs of the models have to be."""
        return self.placement.device or next(self.student.parameters()).device

    # --- placement --------------------------------------------------------------------------------------------------

    @property
    def teacher_is_sharded(self) -> bool:
        """Whether the teacher's parameters are spread over processes."""
        return self.teacher is not None and is_sharded(self.teacher)

    def place(self, placement: ModelPlacement) -> None:
        """Put the models where a placement wants them; models that are sharded already stay as they are.

        Args:
            placement: of the run that begins; models may have been loaded before it.
        """
        self.placement = placement
        placement.shard_model(self.student)
        if self.teacher is not None and not is_quantized(self.teacher):  # a quantised teacher is whole everywhere
            placement.shard_model(self.teacher, cpu_offload=self.teacher_offload)

    def place_teacher(self, device: torch.device) -> None:
        """Move the teacher, unless its strategy or its quantisation keeps it where it is."""
        if self.teacher is not None and not self.teacher_is_sharded and not stays_on_its_device(self.teacher):
            self.teacher.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument

    def rest_teacher(self, device: torch.device) -> None:
        """Move the teacher to the CPU until it is needed, except for its head, which goes to ``device``."""
        if self.teacher is not None and not self.teacher_is_sharded:
            self.place_teacher(torch.device("cpu"))
            self.teacher.get_output_embeddings().to(device)

    # --- states -----------------------------------------------------------------------------------------------------

    def token_states(self, batch: TokenBatch) -> tuple[TokenStates, Tensor]:
        """Return the student's states of the target tokens, and the ids of these tokens ``[N]``."""
        self.student_split.check_text(batch.input_ids, batch.attention_mask, batch.indices)
        offload = save_on_cpu(pin_memory=batch.input_ids.is_cuda) if self.activation_offload else nullcontext()
        with offload:
            return self.student_split.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)

    @torch.no_grad()
    def teacher_token_states(self, batch: TokenBatch) -> TokenStates:
        """Return the teacher's states of the target tokens, without graph; a pair without a teacher raises."""
        split, batch = self.require_teacher(), batch.of_teacher
        return split.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)[0]

    def require_teacher(self) -> SplitCausalLM:
        """Return the teacher as body and head.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher_split is None:
            raise ValueError("there is no teacher to compare with: pass teacher=...")
        return self.teacher_split


def _load(source: ModelFactory) -> PreTrainedModel:
    model = source if isinstance(source, PreTrainedModel) else source()
    fuse_activations(model)
    return model


def _checkpoint_layers(model: PreTrainedModel) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its older name
        model.gradient_checkpointing_enable({"use_reentrant": False})
