"""Training with Lightning, exactly resumable."""
