"""The JAX backend: Stable Diffusion's parts as Flax NNX modules, training and generating with them.

It reads the same model folders as PyTorch and shares words, batches, files and checkpoints with the rest of `tiutils`.
It needs neither torch nor diffusers, which a machine with TPUs may not have.
"""
