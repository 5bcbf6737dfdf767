"""Jitted ports of vision-language backbones."""

from models.registry import load

__all__ = ["load"]
