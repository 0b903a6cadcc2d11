"""From whatever source to one raw archive. Needs no torch."""
