"""Training of the tower of kamera-smol-vl."""
