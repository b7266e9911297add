"""Actions and control maps to photoreal frames."""
