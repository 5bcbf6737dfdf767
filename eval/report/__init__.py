"""Tables, figures and Markdown pages of finished runs."""
