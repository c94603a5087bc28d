"""What the bundled model learns from: nouns and their pictures, places, composed scenes, and photos of nine things."""
