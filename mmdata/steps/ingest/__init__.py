"""How a modality's payload is read, checked and measured. One step a file."""
