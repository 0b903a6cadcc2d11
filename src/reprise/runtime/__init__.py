"""The ground that everything stands on: environment, errors, signals, files written whole. Needs no torch."""
