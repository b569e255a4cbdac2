"""Calibration and evaluation data: datasets, windows over series, checks, metrics, streaming statistics.

Importing this package loads nothing heavy; import what is needed from its modules (`tsexport.calibration.opening`).
"""
