"""Many builds at once: a plan file, what is there already, and the executors that build the rest (docs/plans.md)."""
