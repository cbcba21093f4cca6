"""big_mm: image-text pretraining in JAX. `big_mm.load(directory)` gives a predictor."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from big_mm.predictor import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import big_mm.spec` must not import JAX.
    if name == "load":
        from big_mm.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
