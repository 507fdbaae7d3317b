"""Simulators: particles from first principles or parametrisations, seeded per shard."""
