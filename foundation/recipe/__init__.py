"""Recipes: YAML to validated stages, the artifacts that stages leave, and running them in order."""
