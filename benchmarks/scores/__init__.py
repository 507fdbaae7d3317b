"""What benchmarks/evaluate.py asks of other packages, in environments of their own."""
