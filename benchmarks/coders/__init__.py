"""What benchmarks/tokenizers.py compares: our tokenizers and OmniJet-alpha's, each at work in a process of its own."""
