"""Commands that make and check shard sets: `python -m data_tools.NAME --help`."""
