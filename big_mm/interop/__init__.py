"""Weights in and out: open_clip, Hugging Face, big_vision."""
