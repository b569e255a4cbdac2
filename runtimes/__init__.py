"""Runtimes: load an artifact and run it.  `registry` is the way in; each runtime's own module imports its package."""
