"""Settings of a run: the schema (`schema.py`) and its reader (`load.py`)."""
