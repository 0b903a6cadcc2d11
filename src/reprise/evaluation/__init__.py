"""Predictions, metrics, and the page that goes with a model."""
