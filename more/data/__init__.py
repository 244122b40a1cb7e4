"""Data: shard sets, the order of samples, transforms and datasets."""
