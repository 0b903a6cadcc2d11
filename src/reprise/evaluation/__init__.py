"""Evaluation of a model: predictions, metrics and its Markdown page."""
