"""From tags to masks and a network in one command: `more run`."""
