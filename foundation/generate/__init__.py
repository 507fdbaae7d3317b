"""Sampling: sequences from a trained model, and point clouds from sequences."""
