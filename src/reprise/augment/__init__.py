"""Random augmentation of training images, on whole batches."""
