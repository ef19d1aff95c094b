"""Models on several devices: sharding, tensor parallelism, gradient norms and memory."""
