"""Text encoder, VAE and U-Net in JAX, and their weights."""
