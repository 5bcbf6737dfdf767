"""What the ports' decoders and towers are built of."""
