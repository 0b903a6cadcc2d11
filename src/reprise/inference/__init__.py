"""A trained model at work: what a person hands in, decoded as in training, through a runtime, to classes."""
