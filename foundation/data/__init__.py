"""Point clouds, dataset cards, files and simulators: everything before tokens."""
