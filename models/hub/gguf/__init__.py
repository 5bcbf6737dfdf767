"""Language models in llama.cpp's file format, GGUF: read, dequantised and written as a folder in hub format."""
