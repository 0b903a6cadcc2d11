"""timm models, the weights they start from, and the published model."""
