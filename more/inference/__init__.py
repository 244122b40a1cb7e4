"""A trained network at work: load it, localise, predict."""
