"""Models as the stages see them: loading, text codec, LoRA roles on one backbone, scalar heads."""
