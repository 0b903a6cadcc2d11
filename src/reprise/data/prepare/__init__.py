"""From a raw archive to packed, split and checked arrays. Needs no torch."""
