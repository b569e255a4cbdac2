"""The HTML report and the bundle's README: records as rows and plots.  Nothing is decided here."""
