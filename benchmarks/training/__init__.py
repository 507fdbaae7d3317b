"""What benchmarks/train.py compares: training steps of ours and of public code, each in processes of their own."""
