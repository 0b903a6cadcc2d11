"""Packed arrays to batches."""
