"""Feed-forward networks that give cameras and depth for several views in one pass."""
