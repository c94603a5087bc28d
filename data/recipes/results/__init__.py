"""Results: sheets of pictures, figures, scores, and the words that come with the course."""
