"""The loss terms, one file each, named as in the configuration (`loss.weights`)."""
