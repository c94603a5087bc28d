"""Learned words that come with the course, and how they were made."""
