"""Publishing to the Hugging Face Hub: what goes out, what must not, the cards, and the upload."""
