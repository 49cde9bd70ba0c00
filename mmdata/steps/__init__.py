"""Steps: what a pipeline file can name. One step a file; `registry` finds them by name."""
