"""Scores of predictions against truth: pure NumPy, no model, no device, no Java."""
