"""Shard sets, format 1: write, read, verify. Needs h5py, numpy, OpenCV and Pillow only."""
