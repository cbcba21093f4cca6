"""The one trainer: `loop.train` runs a `run.Run`; `step.py` holds the only jitted update."""
