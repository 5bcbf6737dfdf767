"""Running methods on tasks, and what that leaves on disk."""
