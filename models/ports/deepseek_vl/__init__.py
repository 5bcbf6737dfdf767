"""DeepSeek-VL: a Llama with multi-head attention, and the vision tower of SigLIP."""
