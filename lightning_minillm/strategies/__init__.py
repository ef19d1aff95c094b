"""Lightning strategies: how student and teacher are placed on the devices of a run."""

from lightning_minillm.checkpoints.files import AtomicCheckpointIO
from lightning_minillm.strategies.sharded import ShardedStrategy

__all__ = ["AtomicCheckpointIO", "ShardedStrategy"]
