"""What the operator keeps on disk; no other part of it touches a file."""
