"""The sides of benchmarks/generate.py."""
