"""Training monitors: evaluation points, checkpoint selection, early stopping, alerts."""
