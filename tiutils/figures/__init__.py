"""Grids of images, curves and diagrams, all with alt text."""
