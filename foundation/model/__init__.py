"""One decoder-only transformer over ragged batches, its loss over legal ids, and its weights on disk."""
