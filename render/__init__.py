"""Gaussians to buffers."""
