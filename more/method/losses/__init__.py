"""The loss terms, one file each, and the objective that weighs and schedules them."""
