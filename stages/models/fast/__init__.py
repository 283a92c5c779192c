"""Fast layers and passes: fused LoRA, a plain pass for Llama-like models, float32 logits of 16-bit models."""
