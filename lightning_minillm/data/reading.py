"""Reading and tokenising a data set, and telling what became of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.chat import Targets
from lightning_minillm.data.encoding import EncodedInstructions, Lengths
from lightning_minillm.data.mixing import Mixture
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.sources import RecordSource, SplitSource
from lightning_minillm.data.templates import ChatTemplate, PromptTemplate, template_of
from lightning_minillm.data.token_rows import RowEncoder
from lightning_minillm.tokens import AddBos


def encode_records(
    name: str,
    source: RecordSource | Sequence[InstructionRecord],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate | str | None,
    lengths: Lengths,
    targets: Targets = "all",
    add_bos: AddBos = "auto",
    teacher: RowEncoder | None = None,
) -> EncodedInstructions:
    """Read and tokenise a data set, and tell how much of it was dropped, shortened and truncated.

    Args:
        name: of the data set, for messages.
        source: of the records, or the records.
        tokenizer: as the other arguments, for :class:`EncodedInstructions`.
        template: makes the prompts.
        lengths: limits on prompts and pairs.
        targets: which turns are learned from.
        add_bos: what prompts begin with.
        teacher: writes the prompts that the teacher is shown, if these differ.

    Raises:
        ValueError: data that is missing, empty or lacks a field; the message begins with the name.
    """
    try:
        records = source if isinstance(source, Sequence) else source.load()
        encoded = EncodedInstructions(
            records, tokenizer, template, lengths, targets=targets, add_bos=add_bos, teacher=teacher
        )
        if isinstance(source, SplitSource) and source.weights is not None:
            encoded.mixture = Mixture.of([record.source for record in encoded.records], source.weights)
            rank_zero_info(f"{name}: {encoded.mixture}")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    if encoded.fixed_date is not None:
        rank_zero_warn(
            f"the chat template writes the date, which is {encoded.fixed_date} in all prompts: choose a different one"
            " with data.datamodule.template.date"
        )
    limit = f"more than max_prompt_length={lengths.max_prompt_length} tokens"
    by_teacher = ""
    if encoded.num_dropped_by_teacher:
        by_teacher = f", {encoded.num_dropped_by_teacher} of them only as the teacher's template writes them"
    if encoded.num_dropped:
        rank_zero_warn(
            f"{name}: {encoded.num_dropped} of {encoded.num_dropped + len(encoded)} prompts have {limit} and are"
            f" dropped{by_teacher}"
        )
    if encoded.num_shortened:
        rank_zero_warn(f"{name}: {encoded.num_shortened} prompts have {limit} and have lost their oldest turns")
    if teacher is not None:
        _tell_of_teacher(name, encoded, teacher)
    rank_zero_info(
        f"{name}: {len(encoded)} records, {encoded.lengths.float().mean():.0f} tokens on average, "
        f"{encoded.num_truncated} responses truncated at max_length={lengths.max_length}"
    )
    return encoded


def _tell_of_teacher(name: str, encoded: EncodedInstructions, teacher: RowEncoder) -> None:
    """Tell which date the teacher's prompts have, and how many responses end differently than its turns do."""
    date, end = teacher.fixed_date(encoded.records), teacher.end_of_turn
    if date is not None:
        rank_zero_warn(f"the teacher's chat template writes the date, which is {date}: see teacher.template.date")
    if end is None:
        return
    chats = [isinstance(template_of(teacher.template, record), ChatTemplate) for record in encoded.records]
    count = int((torch.tensor(chats) & (encoded.last_ids != end) & ~encoded.is_truncated).sum())
    if count:
        token = teacher.tokenizer.convert_ids_to_tokens(end)
        rank_zero_warn(
            f"{name}: {count} of {len(encoded)} responses do not end with {token!r}, with which turns end in the"
            " teacher's format: the teacher gives their last token little probability"
        )
