"""Tensor programs that the models run on; they know tensors and norms, and no layer's name."""
