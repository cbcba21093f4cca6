"""Flax Linen modules: layers, the two towers, poolers, and the models composed of them."""
