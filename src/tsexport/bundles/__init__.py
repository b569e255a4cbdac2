"""Bundles on disk: their manifest and lists of digests, written, read, verified, signed, compared and added to."""
