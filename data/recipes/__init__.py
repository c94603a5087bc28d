"""How the bundled model and the concept photos were made, from public packages to `data/tiny-sd`."""
