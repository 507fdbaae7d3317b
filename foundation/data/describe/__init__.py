"""Dataset cards as text, for terminals and for the pages of the reference."""
