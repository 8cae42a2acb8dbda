"""From a bundle and patches to affinities: one runner per backend, behind one contract."""
