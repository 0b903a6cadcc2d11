"""From raw images to packed arrays: `sources` -> `archive` -> `images`, `splits` -> `packed`. Needs no torch."""
