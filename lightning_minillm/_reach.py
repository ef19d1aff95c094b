"""Every reach past the public interface of torch, torchmetrics, transformers and Lightning, in one place.

Each function says what it reaches for and why; ``tests/test_reach.py`` fails when a new version of a dependency renames
or changes it. No other module reads a name with a leading underscore from an object that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torchmetrics import Metric
    from transformers import PretrainedConfig, PreTrainedModel

_Metric = TypeVar("_Metric", bound="Metric")
_ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "failed to allocate")


# --- torch ----------------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out.

    torch has a class for GPUs (``OutOfMemoryError``), but its allocator for the CPU, and CUDA outside of the allocator,
    raise a plain ``RuntimeError`` that only its message identifies.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _ALLOCATION_FAILURES)


def load_distributed(folder: str | Path, key: str) -> dict[str, Any]:
    """Return one entry of a ``torch.distributed.checkpoint`` folder, read by this process alone.

    The public ``load`` fills tensors whose shapes must be known and, in older versions, waits for all ranks;
    ``_EmptyStateDictLoadPlanner`` and ``_load_state_dict``, on which it is built, do not.

    Args:
        folder: the checkpoint.
        key: top-level key, such as ``"state_dict"``.

    Raises:
        OSError, KeyError, ...: the folder cannot be read or lacks the key.
    """
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    content: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys={key})
    _load_state_dict(content, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    return dict(content[key])


# --- transformers ---------------------------------------------------------------------------------------------------


def layer_class_names(model: nn.Module) -> frozenset[str]:
    """Return the class names of a model's decoder layers, which only ``_no_split_modules`` tells; empty if unknown."""
    from transformers import PreTrainedModel

    return frozenset(model._no_split_modules or ()) if isinstance(model, PreTrainedModel) else frozenset()


def head_parallel_styles(model: PreTrainedModel) -> dict[str, str]:
    """Return how tensor parallelism divides what a model class adds to its base model: ``{module name: style}``.

    The styles of the base model are public (``base_model_tp_plan`` of its config); those of the head are in the
    class's ``_tp_plan``.
    """
    return dict(type(model)._tp_plan or {})


def attention_implementation(config: PretrainedConfig) -> str:
    """Return the name of the attention that a loaded model uses (``"sdpa"``, ``"eager"``, ...).

    It is set through a public argument of ``from_pretrained`` and can be read only from ``_attn_implementation``.
    """
    return str(config._attn_implementation)


@contextmanager
def clock_of_chat_templates(moment: datetime) -> Iterator[Callable[[], bool]]:
    """Let ``strftime_now`` of chat templates tell ``moment``.

    transformers gives every template this function and no way to set the time: it reads ``datetime.now()`` of its own
    module.

    Args:
        moment: what templates are told.

    Yields:
        A function that returns whether a template has asked.
    """
    from transformers.utils import chat_template_utils

    asked = False

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            nonlocal asked
            asked = True
            return cls.fromtimestamp(moment.timestamp(), tz)

    names = vars(chat_template_utils)
    before = names["datetime"]
    names["datetime"] = Clock
    try:
        yield lambda: asked
    finally:
        names["datetime"] = before


# --- Lightning ------------------------------------------------------------------------------------------------------


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, ``None`` outside a run; the public ``trainer`` raises there."""
    return module._trainer


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step number under which loggers write, ``_batches_that_stepped``, off by one in some resumed runs."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def validation_follows(trainer: Trainer) -> bool:
    """Return whether a validation follows the current training batch, as the training loop itself decides it.

    ``_should_check_val_fx`` weighs six settings of the trainer, none of which has a public summary; it takes the loop's
    ``_data_fetcher``.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


@contextmanager
def saving_every_step(callback: ModelCheckpoint) -> Iterator[None]:
    """Have a ``ModelCheckpoint`` save at the next step whatever its interval, ``_every_n_train_steps``, is."""
    usual = callback._every_n_train_steps
    callback._every_n_train_steps = 1
    try:
        yield
    finally:
        callback._every_n_train_steps = usual


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set the number of data-parallel ranks before the device mesh is made.

    The constructor takes it, but the number of devices is not known then; ``"auto"`` means one per node.
    """
    strategy._data_parallel_size = size


def batch_progress(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return how many batches a checkpoint of Lightning counts, to be read or changed in place.

    ``total`` and ``current`` (of the epoch) each hold the counts ``ready``, ``started``, ``processed`` and
    ``completed``; ``is_last_batch`` tells whether the epoch is over. The place inside the checkpoint is not documented.
    """
    progress: dict[str, Any] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress


def keep_float64(metric: type[_Metric]) -> type[_Metric]:
    """Have the states of a metric that are float64 stay where they are when it is moved to a device without float64.

    Torchmetrics moves states in ``_apply``, which every ``to`` ends in. A class decorator.
    """
    move = metric._apply

    def move_what_can(self: Metric, function: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        @wraps(function)  # torchmetrics decides by the name of the function
        def move_or_keep(tensor: Tensor) -> Tensor:
            try:
                return function(tensor)
            except TypeError:  # MPS
                if tensor.dtype != torch.float64:
                    raise
                return tensor

        return move(self, move_or_keep, *args, **kwargs)

    metric._apply = move_what_can  # type: ignore[assignment, method-assign]  # the decorator's purpose
    return metric


def drop_anonymous(logger: WandbLogger) -> None:
    """Keep ``anonymous`` from wandb, which warns whatever its value; Lightning's ``_wandb_init`` always has it."""
    logger._wandb_init.pop("anonymous", None)
