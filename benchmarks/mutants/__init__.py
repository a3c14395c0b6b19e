"""Changed expressions in the losses and schedules, and whether a test notices each of them: `make mutants`."""
