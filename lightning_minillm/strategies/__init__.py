"""Lightning strategies: how student and teacher lie on the devices of a run."""

from lightning_minillm.checkpoints.files import AtomicCheckpointIO
from lightning_minillm.strategies.fsdp1 import FSDP1Strategy
from lightning_minillm.strategies.sharded import ShardedStrategy

__all__ = ["AtomicCheckpointIO", "FSDP1Strategy", "ShardedStrategy"]
