"""Checkpoints of training: their files, the weights in them, and positions in micro-batches."""
