"""From raw images to packed arrays: `download` writes a raw archive, `prepare` packs it. Needs no torch."""
