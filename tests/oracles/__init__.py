"""Straightforward formulations, one image and one class at a time, that tests compare with."""
