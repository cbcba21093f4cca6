"""The seam for methods: what a training step computes, as `base.Weighted` or a class like it."""
