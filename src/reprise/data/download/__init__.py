"""Download: from any source to one raw archive. Needs no torch."""
