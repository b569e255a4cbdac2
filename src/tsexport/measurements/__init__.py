"""Commands that measure finished bundles, and what is kept of it over time."""
