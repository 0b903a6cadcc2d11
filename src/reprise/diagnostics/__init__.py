"""Checks of data and network before a training, and where its time goes."""
