"""The ground: types, geometry, errors and file formats; knows nothing of the layers above it."""
