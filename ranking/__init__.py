"""People rank answers: the page they do it on, what is handed out to whom, and where their work is kept."""
