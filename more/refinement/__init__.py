"""From a checkpoint to pseudo-labels: seeds, dense CRF over CPU workers, export."""
