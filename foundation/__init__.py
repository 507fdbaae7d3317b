"""Foundation models for particle physics: one program from jets and calorimeter showers to a registered model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundation.api import Model, load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`foundation.load` and `foundation.Model` bring torch with them: only when they are asked for."""
    if name in ("Model", "load"):
        from foundation import api

        return getattr(api, name)
    raise AttributeError(f"module 'foundation' has no attribute '{name}'")
