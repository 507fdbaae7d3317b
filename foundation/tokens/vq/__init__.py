"""Tokenizers whose codes are learned vectors: VQ-VAE with residual codes or FSQ, and k-means."""
