"""Scores against true masks, and the report page of a run."""
