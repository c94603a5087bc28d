"""The same street in JAX: Stable Diffusion's parts as Flax NNX modules, training and drawing with them.

It reads the folders that PyTorch reads and shares words, batches, files and checkpoints with the rest of `tiutils`.
Neither torch nor diffusers is needed to run it: a TPU's machine has no diffusers.
"""
