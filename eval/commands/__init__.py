"""The `kamera` command."""
