"""Search for better settings, in which every trial is an experiment of DVC."""
