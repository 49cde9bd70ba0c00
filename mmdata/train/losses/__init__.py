"""What the model is trained for: a registry of weighted terms. `config` imports no torch; the rest does."""
