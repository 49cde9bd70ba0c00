"""What a demonstration needs: real media and weights from package registries, or generated scenes."""
