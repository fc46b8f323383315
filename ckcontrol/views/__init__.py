"""Records to text, terminal, HTML and SVG. Knows what a view needs of a record, and no record by name."""
