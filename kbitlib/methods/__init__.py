"""Better k-bit weights than rounding to nearest: (weight, input statistics, format) -> QuantizedTensor."""
