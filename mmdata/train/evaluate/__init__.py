"""`mmdata eval`: what a trained model is worth, with intervals, and a detector of samples that do not agree."""
