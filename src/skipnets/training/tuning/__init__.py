"""Choosing settings by experiment: what is varied, the trials, and what came of them.

Names are loaded from `skipnets.training`.
"""
