"""What scores the agreement of two modalities of a sample. One step a file."""
