"""Training checkpoints: their files, the weights in them, and positions counted in micro-batches."""
