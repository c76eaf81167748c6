"""Functions on tensors: the definition, the spatial reductions, attention over few keys, and the choice of a path."""
