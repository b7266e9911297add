"""`geo4d doctor`: what is installed, what each missing extra would add, and what is wrong with an input."""

from geo4d.doctor.diagnosis import diagnose, render

__all__ = ["diagnose", "render"]
