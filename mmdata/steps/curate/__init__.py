"""What decides, in SQL over the candidates. One step a file."""
