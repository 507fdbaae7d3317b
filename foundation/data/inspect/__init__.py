"""What is in a file or a dataset: which card fits, first statistics, what is wrong."""
