"""What watches a training: the best epoch, averaged weights, finite losses, progress."""
