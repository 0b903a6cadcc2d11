"""The features of a frozen backbone, computed once and kept, and the classifiers that are fitted to them."""
