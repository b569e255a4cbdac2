"""Room exporters."""
