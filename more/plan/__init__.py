"""What a run would do and need, before it starts: no part of the loop."""
