"""What is written for training. One step a file."""
