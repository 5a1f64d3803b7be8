"""Differentiable operations that run whole blocks of a model; they take tensors, not modules."""
