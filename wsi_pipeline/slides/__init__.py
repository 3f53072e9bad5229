"""One slide: its files, its true scale, its pixels at any scale, and what people drew on it."""
