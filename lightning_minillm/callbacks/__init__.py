"""Lightning callbacks: sample tables, throughput, progress bars with rollouts."""
