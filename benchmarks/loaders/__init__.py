"""What benchmarks/stream.py compares: sequences, packing, our stream, its bounds, and the other loaders."""
