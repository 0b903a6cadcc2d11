"""Two revisions of the pipeline side by side: is the one better, what changed, which images broke. Needs no torch."""
