"""Any timm model, its weights, and how it is published."""
