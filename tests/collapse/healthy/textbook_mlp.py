"""``forward(x) -> (recon, mu, log_var)``, dense layers, half the squared error summed."""

from plain_vae import PlainVAE

Model = PlainVAE
