"""Themes of metrics: each turns the samples of one dataset and one model into scores, lines of metrics.json."""
