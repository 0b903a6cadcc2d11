"""The two formats in which data lie: raw (encoded images in one archive) and packed (arrays of one size)."""
