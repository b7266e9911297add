"""File formats: pictures in, scenes out."""
