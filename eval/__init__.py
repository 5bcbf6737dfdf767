"""The evidence: tasks, methods, metrics, the `kamera` command and the tiny-model trainer."""
