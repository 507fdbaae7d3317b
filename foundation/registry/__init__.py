"""MLflow: tracking of runs and the registry of models."""

from foundation.registry.models import RegisteredModel, list_models, register_model, resolve_model
from foundation.registry.tracking import NoTracker, Tracker, open_tracker

__all__ = [
    "NoTracker",
    "RegisteredModel",
    "Tracker",
    "list_models",
    "open_tracker",
    "register_model",
    "resolve_model",
]
