"""Room runtimes."""
