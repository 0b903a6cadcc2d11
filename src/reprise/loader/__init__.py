"""Batches from packed arrays."""
