"""Foundation models for particle physics: one program from jets and calorimeter showers to a registered model."""

__version__ = "0.1.0"
