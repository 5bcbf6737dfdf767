"""Running the model: encode, prefill, form patches, ask and generate."""
