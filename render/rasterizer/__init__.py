"""Gaussians to pictures: one function, three implementations."""
