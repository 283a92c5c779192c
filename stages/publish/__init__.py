"""Publishing to the Hugging Face Hub: which files are uploaded, which are refused, the cards, and the upload."""
