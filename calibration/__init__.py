"""Room calibration."""
