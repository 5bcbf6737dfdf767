"""The evaluation: tasks, methods, metrics, reports, the `kamera` command and the trainer of the embedded models."""
