"""Room quantize."""
