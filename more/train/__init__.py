"""Training: ranks, DeepSpeed engine, schedule, checkpoints, records and the loop."""
