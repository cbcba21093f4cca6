"""Loss terms, one file a family: frozen dataclasses `(outputs, batch) -> (Mean, metrics)`."""
