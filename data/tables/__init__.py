"""Tables of demonstrations, prompts and rankings: files, formats, columns, conversations in cells."""
