"""Frames to a scene: cameras, depth, points and scale."""
