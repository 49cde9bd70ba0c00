"""What of a member becomes columns that rules can speak of. One step a file."""
