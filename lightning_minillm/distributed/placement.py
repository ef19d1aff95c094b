"""What modules ask of a strategy: where models are, and which share of the data a process takes.

A strategy that spreads models over processes derives from :class:`ModelPlacement`, so that a method it forgets or
misspells is an error when it is made. For every other strategy :class:`OneCopy` answers: whole models in each process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_minillm.distributed.gradients import clip_by_norm

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from transformers import PreTrainedModel

_Result = TypeVar("_Result")


class ModelPlacement(ABC):
    """Places the student and the teacher on the devices of a run.

    Every process takes data of its own, except for processes that hold pieces of the same matrices (tensor
    parallelism), which take the same rows. The "data ranks" below are the processes with data of their own.
    """

    @property
    @abstractmethod
    def device(self) -> torch.device | None:
        """This process's device; ``None`` if it is where the parameters are."""

    @property
    @abstractmethod
    def data_rank(self) -> int:
        """Number of this process among the data ranks; processes that share matrices share it."""

    @property
    @abstractmethod
    def data_world_size(self) -> int:
        """Number of data ranks."""

    @abstractmethod
    def sum_over_data(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the data ranks; all of them take part."""

    @abstractmethod
    def gather_over_data(self, value: Any) -> list[Any]:
        """Return the objects of all data ranks, in the order of ranks; all of them take part."""

    @property
    @abstractmethod
    def shards_models(self) -> bool:
        """Whether parameters are spread over processes, so that every process takes part in every pass."""

    @abstractmethod
    def shard_model(self, model: PreTrainedModel, *, cpu_offload: bool = False) -> None:
        """Spread a loaded model over the processes, in place; ``cpu_offload`` keeps its shards on the CPU."""

    @abstractmethod
    def run_sampling(self, function: Callable[[], _Result]) -> _Result:
        """Call a function that samples from the models, or uses them in any way that needs no gradient."""

    @abstractmethod
    def finish_together(self, finished: bool) -> bool:
        """Return whether a process whose responses are ``finished`` may stop sampling."""

    @abstractmethod
    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        """Scale all gradients in place so that their common 2-norm over all processes is at most ``max_norm``."""


@runtime_checkable
class HoldsModels(Protocol):
    """A module whose models a strategy may have to gather."""

    def loaded_models(self) -> list[nn.Module]:
        """Return the student and the teacher; those that are not loaded yet are left out."""


class OneCopy(ModelPlacement):
    """Whole models in every process.

    Args:
        trainer: gives rank, number of processes and reductions; ``None`` outside a run, for one process.
    """

    def __init__(self, trainer: Trainer | None = None) -> None:
        self._trainer = trainer

    device = None  # a trainer moves whole models, and moves them back to the CPU after a run
    shards_models = False

    @property
    def data_rank(self) -> int:
        """Number of this process."""
        return 0 if self._trainer is None else self._trainer.global_rank

    @property
    def data_world_size(self) -> int:
        """Number of processes."""
        return 1 if self._trainer is None else self._trainer.world_size

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self._trainer is None:
            return values
        summed: Tensor = self._trainer.strategy.reduce(values, reduce_op="sum")
        return summed

    def gather_over_data(self, value: Any) -> list[Any]:
        """Return the objects of all processes."""
        return gather_objects(value, self.data_world_size)

    def shard_model(self, model: PreTrainedModel, *, cpu_offload: bool = False) -> None:
        """Leave the model as it is."""

    def run_sampling(self, function: Callable[[], _Result]) -> _Result:
        """Call the function."""
        return function()

    def finish_together(self, finished: bool) -> bool:
        """Return ``finished``: no process needs another one to sample."""
        return finished

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        """Clip by the norm over the gradients of this process, which are those of all of them."""
        clip_by_norm(parameters, max_norm)


def placement_of(trainer: Trainer | None) -> ModelPlacement:
    """Return how the strategy of a trainer places models: whole in each process if it does not say, or without one."""
    strategy = None if trainer is None else trainer.strategy
    return strategy if isinstance(strategy, ModelPlacement) else OneCopy(trainer)


def gather_objects(value: Any, world_size: int, group: Any = None) -> list[Any]:
    """Return the objects of all ``world_size`` processes of a group, in the order of ranks; they must pickle.

    Without a group, these are the processes of the run.
    """
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, value, group=group)
    return gathered
