"""Pictures and records of a run."""
