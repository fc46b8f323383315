"""Figures to drawings: dial curves, trade-offs and forests, on the one canvas."""
