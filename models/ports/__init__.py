"""One folder for each backbone."""
