"""What makes children of a sample, all its modalities together. One step a file."""
