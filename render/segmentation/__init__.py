"""Object ids for Gaussians: geometric clusters, boxes and masks lifted from photos, and SAM 2."""
