"""File containers: ROOT, Parquet, HDF5, npz, showerdata. Each gives arrays of a range of entries by key."""
