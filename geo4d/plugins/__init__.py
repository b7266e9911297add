"""geo4d in other programs: modules that those load by entry points."""
