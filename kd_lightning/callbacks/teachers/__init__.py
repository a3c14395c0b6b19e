"""Teachers that are frozen, or that change during the fit."""
