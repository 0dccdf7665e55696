"""Collapse of the latent code: watched during training and judged after it."""
