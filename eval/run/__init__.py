"""Running methods on tasks, the run's folder, and its scores."""
