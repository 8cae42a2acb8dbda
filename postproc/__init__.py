"""From affinities to a segmentation: blending, fragments, agglomeration, metrics."""
