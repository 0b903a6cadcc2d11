"""Search for the best setting: a space of params, its trials by Optuna, each one an experiment of DVC."""
