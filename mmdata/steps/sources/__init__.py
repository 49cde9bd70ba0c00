"""Where samples come from. One step a file."""
