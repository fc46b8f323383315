"""Samples to results.json: rates, intervals, paired comparisons and the dial's curve."""
