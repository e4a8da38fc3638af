"""Benchmarks: one script per question, each saying what number would change a decision."""
