"""What people drew or labelled beside a slide."""
