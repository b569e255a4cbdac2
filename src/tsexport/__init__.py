"""tsexport: from a trained checkpoint to a measured, verified bundle."""

__version__ = "0.1.0"
