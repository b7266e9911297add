"""Verbs over files: what the command line and scripts call, one module per group of verbs."""
