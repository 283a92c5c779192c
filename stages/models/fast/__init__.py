"""Fast layers and passes: LoRA in one step, a plain pass for Llama-like models, float32 logits in 16 bits."""
