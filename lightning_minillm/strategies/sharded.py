"""FSDP2, alone or with tensor parallelism, for a student and a frozen teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from lightning_minillm._reach import set_data_parallel_size
from lightning_minillm.batch_sizes import divide
from lightning_minillm.checkpoints.files import put_in_place, read_checkpoint, recover
from lightning_minillm.checkpoints.weights import check_architecture, shapes_of, weight_shapes
from lightning_minillm.distributed.gradients import clip_by_norm
from lightning_minillm.distributed.placement import HoldsModels, ModelPlacement, gather_objects
from lightning_minillm.distributed.sharding import gathered, is_sharded, run_sharded, shard
from lightning_minillm.distributed.tensor_parallel import divide_matrices

_Result = TypeVar("_Result")
Sharding = Literal["full", "grad_op", "hybrid"]
_DTYPES = {None: None, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHARDINGS = ("full", "grad_op", "hybrid")


class ShardedStrategy(ModelPlacement, ModelParallelStrategy):
    """Shards the student and the teacher when a module loads them in ``configure_model``.

    It runs on GPUs and, with gloo, on the CPU. Ranks that share matrices (tensor parallelism) take the same rows of
    data; all other ranks take rows of their own.

    Args:
        sharding: ``"full"`` gathers parameters layer by layer for the forward pass and again for the backward pass.
            ``"grad_op"`` keeps them gathered in between, which takes the memory of a whole model. ``"hybrid"`` shards
            inside each replica and copies over replicas.
        tensor_parallel_size: ranks over which each matrix is divided; the pieces are sharded over the remaining ranks.
        replicas: number of replicas of ``"hybrid"``; ``None`` for the number of nodes.
        param_dtype: dtype of compute, ``"bfloat16"`` or ``"float16"``; the shards, which the optimiser updates, and the
            sums of gradients stay in float32. ``None`` computes in the dtype of the shards.
        cpu_offload: keep shards, gradients and the optimiser state on the CPU.
        gather_for_rollouts: hold whole models while sampling. ``False`` gathers one layer at a time for every token,
            which is slow but needs no memory for a whole model.
        save_distributed_checkpoint: write checkpoints as folders to which every rank writes its part; ``False`` writes
            one file on the first rank.
        kwargs: arguments of Lightning's ``ModelParallelStrategy``.

    Raises:
        ValueError: an option is outside its range.
    """

    def __init__(
        self,
        sharding: Sharding = "full",
        *,
        tensor_parallel_size: int = 1,
        replicas: int | None = None,
        param_dtype: str | None = None,
        cpu_offload: bool = False,
        gather_for_rollouts: bool = True,
        save_distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        if sharding not in _SHARDINGS:
            raise ValueError(f"sharding must be one of {', '.join(_SHARDINGS)}, got {sharding!r}")
        if param_dtype not in _DTYPES:
            raise ValueError(f"param_dtype must be bfloat16, float16, float32 or null, got {param_dtype!r}")
        if tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size must be at least 1, got {tensor_parallel_size}")
        if cpu_offload and torch.cuda.is_available():
            # the norm of gradients on the CPU is summed on the CPU
            kwargs.setdefault("process_group_backend", "cuda:nccl,cpu:gloo")
        super().__init__(
            tensor_parallel_size=tensor_parallel_size, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs
        )
        self.sharding = sharding
        self.tensor_parallel_size = tensor_parallel_size
        self.saves_folders = save_distributed_checkpoint
        self.replicas = replicas
        self.param_dtype = _DTYPES[param_dtype]
        self.cpu_offload = cpu_offload
        self.gather_for_rollouts = gather_for_rollouts
        self._shard_mesh: DeviceMesh | None = None

    # --- ranks ------------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Divide the ranks; by default, Lightning makes one data-parallel rank per node.

        Raises:
            ValueError: the number of ranks is not a multiple of ``tensor_parallel_size`` and ``replicas``.
        """
        world = self.num_nodes * self.num_processes
        data_parallel_size = divide(world, self.tensor_parallel_size, "ranks", "tensor_parallel_size")
        set_data_parallel_size(self, data_parallel_size)
        super().setup_environment()
        mesh = self.device_mesh
        if self.sharding == "hybrid":
            replicas = self.replicas or self.num_nodes
            shards = divide(data_parallel_size, replicas, "ranks / tensor_parallel_size", "replicas")
            sizes, names = (replicas, shards, self.tensor_parallel_size), ("replicate", "shard", "tensor_parallel")
            mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=names)
            self._shard_mesh = mesh["replicate", "shard"]
        else:
            self._shard_mesh = mesh["data_parallel"]

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch.device(self.root_device)

    @property
    def data_world_size(self) -> int:
        """Number of ranks that have data of their own."""
        return int(self.device_mesh["data_parallel"].size())

    @property
    def data_rank(self) -> int:
        """Number of this rank among the ranks with data of their own; ranks that share matrices share it."""
        return int(self.device_mesh["data_parallel"].get_local_rank())

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over ranks that together have every row of data once."""
        summed: Tensor = self.reduce(values, self._data_group, reduce_op="sum")
        return summed

    def gather_over_data(self, value: Any) -> list[Any]:
        """Return the objects of these ranks, in the order of ranks."""
        return gather_objects(value, self.data_world_size, self._data_group)

    @property
    def _data_group(self) -> Any:
        return self.device_mesh["data_parallel"].get_group()

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def shards_models(self) -> bool:
        """``True``."""
        return True

    def shard_model(self, model: PreTrainedModel, *, cpu_offload: bool = False) -> None:
        """Spread a loaded model over the ranks, in place.

        Args:
            model: a model that is sharded already is left as it is.
            cpu_offload: keep the shards on the CPU, even if the strategy's ``cpu_offload`` is off.
        """
        if is_sharded(model):
            return
        if self.tensor_parallel_size > 1:
            model.to(self.root_device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
            divide_matrices(model, self.device_mesh["tensor_parallel"])
        assert self._shard_mesh is not None
        shard(
            model,
            self._shard_mesh,
            reshard_after_forward=self.sharding != "grad_op",
            param_dtype=self.param_dtype,
            cpu_offload=self.cpu_offload or cpu_offload,
        )

    def model_to_device(self) -> None:
        """Move everything that is not sharded; with ``cpu_offload``, only buffers."""
        assert self.model is not None
        if not self.cpu_offload:
            super().model_to_device()
            return
        for name, buffer in list(self.model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, buffer.to(self.root_device))

    @property
    def _models(self) -> list[nn.Module]:
        """Student and teacher, once they are loaded."""
        module = self.lightning_module
        return module.loaded_models() if isinstance(module, HoldsModels) else []

    def run_sampling(self, function: Callable[[], _Result]) -> _Result:
        """Call a function that samples from the models, or uses them in any way that needs no gradient."""
        with gathered(*self._models) if self.gather_for_rollouts else nullcontext():
            return run_sharded(self._models, function)

    def finish_together(self, finished: bool) -> bool:
        """Return whether a rank whose responses are ``finished`` may stop sampling.

        With whole models it may. Without, every rank takes part in gathering layers until all ranks are finished.
        """
        if self.gather_for_rollouts:
            return finished
        running = torch.tensor([0.0 if finished else 1.0], device=self.root_device)
        return bool(self.reduce(running, reduce_op="sum") == 0)

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        """Clip by the norm over all ranks, however each gradient is sharded."""
        clip_by_norm(parameters, max_norm)

    # --- steps ------------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's step as the forward pass of its models."""
        return run_sharded(self._models, partial(super().training_step, *args, **kwargs))

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's step where models may be sampled from."""
        return self.run_sampling(partial(super().validation_step, *args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's step where models may be sampled from."""
        return self.run_sampling(partial(super().test_step, *args, **kwargs))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a file or a folder, which appears under its name once it is complete."""
        if not self.saves_folders:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        scratch = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, scratch, storage_options)
        self.barrier()
        if self.is_global_zero:
            put_in_place(scratch, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file or a folder, written by any number of ranks, into the sharded model.

        Raises:
            ValueError: the checkpoint is cut off or has a different architecture; the model is not changed.
        """
        path = Path(self.broadcast(checkpoint_path))
        if self.is_global_zero:
            recover(path)
        self.barrier()
        assert self.lightning_module is not None
        theirs = read_checkpoint(path, lambda: {"pytorch-lightning_version": "", "shapes": weight_shapes(path)})
        check_architecture(shapes_of(self.lightning_module.state_dict()), theirs["shapes"])
        return read_checkpoint(path, partial(super().load_checkpoint, path, weights_only))
