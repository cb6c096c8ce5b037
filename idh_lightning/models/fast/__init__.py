"""Fast CPU kernels: convolutions, fused stem, memory of a training step."""
