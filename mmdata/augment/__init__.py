"""Change the pair, keep it true: operators that know what they do to every modality of a sample.

Knows samples and media, no pipeline: a build and the trainer's loader make the same children with the same code.
"""
