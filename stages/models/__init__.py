"""The models that stages use: loading, text encoding, one LoRA adapter per role on one backbone, scalar heads."""
