"""What goes to a device that is not here, and what comes back from it."""
