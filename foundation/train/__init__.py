"""The training loop, its engine (accelerate, DeepSpeed), its checkpoints."""
