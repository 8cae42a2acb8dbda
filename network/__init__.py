"""FGNet in PyTorch, its data and its training; never imported by engine or postproc."""
