"""params.yaml: its shape, how it is read, and what it resolves to on this machine."""
