"""The commands of `python -m more`, by what they are for."""
