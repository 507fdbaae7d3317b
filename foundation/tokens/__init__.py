"""From point clouds to ids of one shared vocabulary, and back."""
