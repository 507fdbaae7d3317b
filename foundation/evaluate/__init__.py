"""Evaluation: observables, metrics beside a truth-against-truth floor, figures and the report."""
