"""What is kept of a slide: the store, regions, fields, pictures and numbers."""
