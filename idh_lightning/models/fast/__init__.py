"""Fast kernels: convolutions with fast gradients, the fused stem, and the arithmetic of a device."""
