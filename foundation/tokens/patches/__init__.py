"""Voxel showers as patches of their grid: a VQ-VAE over the patches of a shower."""
