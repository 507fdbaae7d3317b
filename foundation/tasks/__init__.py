"""What a model is trained for: what it reads, predicts and minimises."""
