"""The ranking page: what people see, who ranks what, and the database of their rankings."""
