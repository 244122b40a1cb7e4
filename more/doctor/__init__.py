"""`python -m more doctor`: what this machine can do, and what would go wrong."""
