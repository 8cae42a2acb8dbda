"""From a checkpoint to a bundle that any inference server can run."""
