"""Shards of tokenised point clouds, and the deterministic mixed stream that training reads."""
