"""A run in progress: training, checkpoints, resuming, stopping, and what it reports."""
