"""`tutelage init`: a recipe from a user's own tables and base model."""
