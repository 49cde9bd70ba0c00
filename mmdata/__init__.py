"""mmdata builds training sets for multimodal models out of paired media, and proves that the pairs belong together."""

__version__ = "0.1.0"
