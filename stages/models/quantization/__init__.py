"""Grids of low-precision formats, and quantisation-aware training for them."""
